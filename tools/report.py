"""Makes report.html and report.md from result rows.

tools/report.py out/results.jsonl -o out/report
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from moco_det.report import make_report
from moco_det_tools.entry import run


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, make the report, say where it is."""
    parser = argparse.ArgumentParser(
        prog="report",
        description="Make report.html (one file, opens offline) and report.md from result rows.",
    )
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS", help="results.jsonl files, or folders with one"
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", help="where to write")
    parser.add_argument("--title", help="the report's heading")
    parser.add_argument(
        "--pretraining",
        nargs="+",
        default=[],
        metavar="DIR",
        help="output folders of tools/pretrain.py whose curves are to be shown",
    )
    args = parser.parse_args(argv)
    written = make_report(args.results, args.output, title=args.title, pretraining=args.pretraining)
    for path in written.values():
        print(f"{path}  {path.stat().st_size / 1024:,.0f} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
