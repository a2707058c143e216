"""The command line that both harnesses have: a range of seeds, a line of results per seed."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.attempts import import_tools, seeds_of

Line = dict[str, Any]


def run(
    parser: argparse.ArgumentParser,
    begin: Callable[[argparse.Namespace, Path], Callable[[int], Line]],
    table: Callable[[list[Line]], str],
) -> int:
    """Run the seeds that the file of results lacks and print its table; 1 where a fault was found.

    `begin` is given the options and a folder, and gives what runs a seed.
    """
    parser.add_argument("--seeds", type=seeds_of, default=range(0), metavar="FIRST:END")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="a line per seed")
    parser.add_argument("--work", type=Path, help="folder of the inputs (default: a temporary one)")
    parser.add_argument("--table", type=Path, nargs="+", default=[], metavar="FILE")
    args = parser.parse_args()
    read = [args.output] if args.output and args.output.exists() else []
    done = [json.loads(line) for file in [*read, *args.table] for line in file.open()]
    left = [seed for seed in args.seeds if seed not in {line["seed"] for line in done}]
    if left:
        import_tools()
        work = args.work or Path(tempfile.mkdtemp(prefix="torture-"))
        work.mkdir(parents=True, exist_ok=True)
        run_seed = begin(args, work)
        for seed in left:
            done.append(run_seed(seed))
            if args.output:
                with open(args.output, "a") as file:
                    file.write(json.dumps(done[-1]) + "\n")
            print(f"seed {seed}: {len(done[-1]['faults'])} faults", file=sys.stderr, flush=True)
    print(table(done))
    return int(any(line["faults"] for line in done))
