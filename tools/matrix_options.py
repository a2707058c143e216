"""What benchmark and study have in common on the command line: where a matrix runs, its report."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from moco_det_tools.entry import add_engine, at_least


def add_matrix_options(
    parser: argparse.ArgumentParser, *, of: str, unit: str, task: str, title: str
) -> None:
    """The options of a matrix that a file declares, a suite or a study (`of`).

    `unit` is what runs on a GPU, `task` what a job array has one task for, `title` the default.
    """
    add = parser.add_argument
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder for all output (default: runs/{of.upper()})",
    )
    add("--seeds", metavar="N|LIST", help=f"how many, or which: 5, or 0,3,7 (default: the {of}'s)")
    add_engine(parser)
    add(
        "--gpus",
        metavar="LIST",
        help=f"GPUs to use, one {unit} on each: 0,1,2,3 (default: the first one, or the CPU)",
    )
    add(
        "--at-once",
        type=at_least(1, 1024),
        default=1,
        metavar="N",
        help=f"{unit}s side by side on the CPU, whose cores they share, or on the same GPUs",
    )
    add("--dry-run", action="store_true", help="only show what is left to run")
    add(
        "--slurm",
        action=argparse.BooleanOptionalAction,
        default=False,
        help=f"write a job array, one task per {task}, and run nothing; on the CPU without --gpus",
    )
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="an option of the job, such as --sbatch=--time=8:00:00 (default: none)",
    )
    add(
        "--only",
        metavar=task.upper(),
        help=f"this {task} alone, as job arrays do (default: every {task})",
    )
    add("--no-report", action="store_true", help="do not make the report")
    add("--title", help=f"the report's heading (default: {title})")


def takes_gpus(args: argparse.Namespace) -> bool:
    """Whether the matrix runs on GPUs.

    The machine that writes a job array is not the one that runs it: what it has decides nothing.
    """
    if args.gpus or args.slurm:
        return bool(args.gpus)
    import torch

    return torch.cuda.is_available()


def submit(
    args: argparse.Namespace,
    given: Sequence[str],
    tasks: Sequence[str],
    output: Path,
    *,
    tool: str,
    engine: str,
    gpus: int,
) -> None:
    """Write the job array of a command line, `given`, with `gpus` per task; says how to submit."""
    from moco_det.runs.suites import slurm

    script = slurm.write_job_array(
        tasks,
        output,
        command=[
            *(sys.executable, "-m", f"moco_det_tools.{tool}"),
            *slurm.task_command(given, engine=engine),
        ],
        gpus=gpus,
        directives=args.sbatch,
    )
    where = f"{gpus} GPU(s) per task" if gpus else "on the CPU; --gpus asks for GPUs"
    print(f"submit it with: sbatch {shlex.quote(str(script))}  # {where}")
