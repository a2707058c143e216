"""Run initialisations x settings x seeds and keep their report up to date.

The same command goes on where it stopped; a finished run is never run again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from moco_det.foundation.commands import command
from moco_det.runs.engines import choose_engine
from moco_det.settings.zoo import find_suite
from moco_det_tools.entry import add_engine, at_least, make_parser, run


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
    add("--seeds", metavar="N|LIST", help="how many, or which: 5, or 0,3,7 (default: the suite's)")
    add_engine(p)
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="folder for all output (default: runs/SUITE)",
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
    add(
        "--gpus",
        metavar="LIST",
        help="GPUs to use, one run on each: 0,1,2,3 (default: the first one, or the CPU)",
    )
    add("--gpus-per-run", type=at_least(1, 1024), default=1, metavar="N", help="GPUs of one run")
    add(
        "--at-once",
        type=at_least(1, 1024),
        default=1,
        metavar="N",
        help="runs side by side on the CPU, whose cores they share, or on each group of GPUs",
    )
    add("--dry-run", action="store_true", help="only show the matrix, its cost and its commands")
    add(
        "--slurm",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write a job array and run nothing; its tasks run on the CPU without --gpus",
    )
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of the job, such as --sbatch=--time=8:00:00 (default: none)",
    )
    add("--only", metavar="RUN", help="run this one alone, as job arrays do (default: every run)")
    add("--no-report", action="store_true", help="do not make the report")
    add("--title", help="the report's heading (default: named after its data)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the matrix; 0 if all runs are finished, 1 if some are left, 128 + N by signal N."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(given)
    # Imported here so that --help does not wait.
    import torch

    from moco_det.runs.suites import live, matrix, runner, slurm, state, suite

    choice = choose_engine(args.engine)
    if choice.broken:
        print(f"--engine auto takes standalone: {choice.reason}")
    # The machine that writes a job array is not the one that runs it: what it has decides nothing.
    on_gpu = bool(args.gpus) or (not args.slurm and torch.cuda.is_available())
    changes = suite.run_changes(args.data, args.set, on_gpu=on_gpu)
    read = suite.read_suite(find_suite(args.suite), changes)
    output = args.output or Path("runs") / read.name
    arms = matrix.read_arms(
        args.weights,
        random=not args.no_random,
        supervised=not args.no_supervised,
        default_supervised=read.supervised,
        may_be_absent=args.dry_run,
    )
    matrix.check_settings(read.settings, arms, engine=choice.engine)
    seeds = matrix.read_seeds(args.seeds, read.seeds)
    runs = matrix.build_matrix(read.settings, arms, seeds, engine=choice.engine, only=args.only)
    slots = runner.read_slots(args.gpus, args.gpus_per_run, args.at_once)
    now = state.read_state(output / "results.jsonl", runs)
    live.show_cost(runs, now, output, at_once=len(slots))
    if args.dry_run:
        live.show_commands(now.left(runs), given)
        return 0
    if args.slurm:
        gpus = args.gpus_per_run if args.gpus else 0
        task = slurm.task_command(given, engine=choice.engine, gpus=gpus)
        script = slurm.write_job_array(
            [run.name for run in now.left(runs)],
            output,
            command=[sys.executable, "-m", "moco_det_tools.benchmark", *task],
            gpus=gpus,
            directives=args.sbatch,
        )
        where = f"{gpus} GPU(s) per task" if gpus else "on the CPU; --gpus asks for GPUs"
        print(f"submit it with: sbatch {shlex.quote(str(script))}  # {where}")
        print(f"then see them with: {command('report', output, '-o', output)}")
        return 0
    return live.run_and_report(runs, output, slots, report=not args.no_report, title=args.title)


if __name__ == "__main__":
    raise SystemExit(run(main))
