"""Run initialisations x settings x seeds and keep their report up to date.

The same command goes on where it stopped; a finished run is never run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moco_det.foundation.commands import command
from moco_det.runs.engines import choose_engine
from moco_det.settings.zoo import find_suite
from moco_det_tools.entry import at_least, make_parser, run
from moco_det_tools.matrix_options import add_matrix_options, submit, takes_gpus


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser(
        "benchmark",
        __doc__,
        example="--suite quick --weights moco=moco.pkl supervised=sup.pkl --seeds 3 \\\n"
        '    --data "voc://DIR?split=train" "voc://DIR?split=test" -o runs/quick',
        # the tasks of a job array repeat the command line, maybe after an option was added
        allow_abbrev=False,
    )
    add = p.add_argument
    add("--suite", required=True, metavar="NAME|FILE", help="voc, coco, quick or a yaml file")
    add(
        "--weights",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="the arms on trial, and supervised=FILE (default: the suite's supervised weights)",
    )
    add(
        "--data",
        nargs=2,
        metavar=("TRAIN", "TEST"),
        help="voc://... or coco://... for all settings (default: what the suite names)",
    )
    add(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="a config key of all runs; may be given several times (default: none)",
    )
    add("--no-random", action="store_true", help="leave out the random arm")
    add("--no-supervised", action="store_true", help="leave out the supervised arm")
    add("--gpus-per-run", type=at_least(1, 1024), default=1, metavar="N", help="GPUs of one run")
    add_matrix_options(p, of="suite", unit="run", task="run", title="named after its data")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the matrix; 0 if all runs are finished, 1 if some are left, 128 + N by signal N."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(given)
    # Imported here so that --help does not wait.
    from moco_det.runs.suites import live, matrix, runner, state, suite

    choice = choose_engine(args.engine)
    if choice.broken:
        print(f"--engine auto takes standalone: {choice.reason}")
    changes = suite.run_changes(args.data, args.set, on_gpu=takes_gpus(args))
    read = suite.read_suite(find_suite(args.suite), changes)
    output = args.output or Path("runs") / read.name
    arms = matrix.read_arms(
        args.weights,
        random=not args.no_random,
        supervised=not args.no_supervised,
        default_supervised=read.supervised,
        may_be_absent=args.dry_run,
    )
    for line in matrix.check_settings(read.settings, arms, engine=choice.engine):
        print(f"warning: {line}", file=sys.stderr)
    seeds = matrix.read_seeds(args.seeds, read.seeds)
    runs = matrix.build_matrix(read.settings, arms, seeds, engine=choice.engine, only=args.only)
    slots = runner.read_slots(args.gpus, args.gpus_per_run, args.at_once)
    now = state.read_state(output / "results.jsonl", runs)
    live.show_cost(runs, now, output, at_once=len(slots))
    if args.dry_run:
        live.show_commands(now.left(runs), given)
        return 0
    if args.slurm:
        left = [run.name for run in now.left(runs)]
        gpus = args.gpus_per_run if args.gpus else 0
        submit(args, given, left, output, tool="benchmark", engine=choice.engine, gpus=gpus)
        print(f"then see them with: {command('report', output, '-o', output)}")
        return 0
    return live.run_and_report(runs, output, slots, report=not args.no_report, title=args.title)


if __name__ == "__main__":
    raise SystemExit(run(main))
