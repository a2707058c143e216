"""List, show and export the rows of results.jsonl."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.results import Row, read_rows
from moco_det.results.listing import as_csv, as_json, find, in_full, table
from moco_det_tools.entry import make_parser, run

FORMATS: dict[str, Callable[[Sequence[Row]], str]] = {
    ".csv": as_csv,
    ".tsv": lambda rows: as_csv(rows, delimiter="\t"),
    ".json": as_json,
}


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser("results", __doc__, example="export runs/quick -o rows.csv")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    format_help = {"formatter_class": p.formatter_class}
    ls = commands.add_parser("ls", help="one line per row", **format_help)
    show = commands.add_parser("show", help="everything that a run's rows hold", **format_help)
    show.add_argument("run", metavar="RUN", help="the run's name, or its beginning")
    export = commands.add_parser("export", help="rows with flat columns", **format_help)
    export.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=f"a file that ends in {', '.join(FORMATS)}",
    )
    for command in (ls, show, export):
        command.add_argument(
            "results", nargs="+", metavar="RESULTS", help="results.jsonl files, or their folders"
        )
    for command in (ls, export):
        add = command.add_argument
        add("--arm", help="rows of this arm only (default: of every arm)")
        add("--config", metavar="NAME", help="rows of this config only (default: of every config)")
        add("--status", choices=("finished", "failed"), help="these rows only (default: both)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Read, choose, print or write; what was skipped is said on stderr."""
    args = parser().parse_args(argv)
    read = read_rows(args.results)
    for problem in read.problems:
        print(f"warning: {problem}", file=sys.stderr)
    if args.command == "show":
        print("\n\n".join(map(in_full, find(read.rows, args.run))))
        return 0
    rows = [
        row
        for row in read.rows
        if args.arm in (None, row.arm)
        and args.config in (None, row.data["config_name"])
        and args.status in (None, row.data["status"])
    ]
    if args.command == "ls":
        print("\n".join(table(rows)))
        return 0
    if args.output.suffix not in FORMATS:
        raise InputError(f"--output {args.output}: name a file that ends in {', '.join(FORMATS)}")
    write_text(args.output, FORMATS[args.output.suffix](rows))
    print(f"{len(rows)} rows in {args.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
