"""Make report.html (one file, opens offline), report.md and tables from result rows.

With --against, say what improved and what regressed beyond noise; the exit code is then 1 if
anything regressed, else 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from moco_det.foundation.errors import InputError
from moco_det.report import compare_reports, make_report
from moco_det.results import read_rows
from moco_det_tools.entry import make_parser, run

# Skipped lines that are named on the terminal; the report has all.
MOST_PROBLEMS = 10


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser("report", __doc__, example="runs/quick -o report/")
    add = p.add_argument
    add("results", nargs="+", metavar="RESULTS", help="results.jsonl files, or folders with one")
    add("-o", "--output", metavar="DIR", help="where to write the report (default: nowhere)")
    add("--title", help="the report's heading (default: named after its data)")
    add(
        "--against",
        nargs="+",
        metavar="RESULTS",
        help="rows of the report to compare with (default: none)",
    )
    add(
        "--pretraining",
        nargs="+",
        default=[],
        metavar="DIR",
        help="output folders of pre-training whose curves are to be shown (default: none)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Make the report, compare, or both; 1 where something regressed beyond noise."""
    args = parser().parse_args(argv)
    if args.output is None and not args.against:
        raise InputError("nothing to do: name a folder with -o, or other rows with --against")
    problems = read_rows([*args.results, *(args.against or ())]).problems
    for problem in problems[:MOST_PROBLEMS]:
        print(f"warning: {problem}", file=sys.stderr)
    if len(problems) > MOST_PROBLEMS:
        print(f"warning: and {len(problems) - MOST_PROBLEMS} lines more", file=sys.stderr)
    if args.output is not None:
        written = make_report(
            args.results,
            args.output,
            title=args.title,
            pretraining=args.pretraining,
            against=args.against or (),
        )
        for path in written.values():
            print(f"{path}  {path.stat().st_size / 1024:,.0f} KiB")
    if not args.against:
        return 0
    diff = compare_reports(read_rows(args.results).rows, read_rows(args.against).rows)
    print("\n".join(diff.lines()))
    return 1 if diff.regressed else 0


if __name__ == "__main__":
    raise SystemExit(run(main))
