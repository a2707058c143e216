"""Test declared hypotheses: pre-train, probe and fine-tune what they need, and judge them.

STUDY is a yaml file (docs/studies.md) or one of configs/studies. The same command goes on where it
stopped; nothing is run twice, also not by another study with the same folder.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from moco_det.foundation.commands import command, duration
from moco_det.runs.engines import choose_engine
from moco_det.settings.zoo import find_study
from moco_det_tools.entry import add_engine, at_least, make_parser, run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser(
        "study",
        __doc__,
        example="moco_claims/momentum --budget 30m -o runs/claims",
        allow_abbrev=False,  # as in benchmark
    )
    add = p.add_argument
    add("studies", nargs="+", metavar="STUDY", help="the studies, which share one folder")
    add(
        "-o",
        "--output",
        type=Path,
        metavar="DIR",
        help="of all output (default: runs/STUDY)",
    )
    add("--seeds", metavar="N|LIST", help="starts of each encoder (default: the study's)")
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="NAME=DIR",
        help="data of your own (default: none)",
    )
    add_engine(p)
    add(
        "--budget",
        type=duration,
        metavar="TIME",
        help="stop, saved, after 90s, 12m or 3h (default: none)",
    )
    add("--gpus", metavar="LIST", help="GPUs to use: 0,1,2,3 (default: the first one, or the CPU)")
    add(
        "--at-once",
        type=at_least(1, 1000),
        default=1,
        metavar="N",
        help="pieces side by side on the CPU, whose cores they share, or on each GPU",
    )
    add(
        "--lean",
        action="store_true",
        help="remove scored detectors and what a resume needs",
    )
    add("--dry-run", action="store_true", help="only say what is left to run")
    add(
        "--slurm",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="write a job array, a task per start of an encoder, and run nothing",
    )
    add(
        "--sbatch", action="append", default=[], metavar="OPTION", help="of the job (default: none)"
    )
    add(
        "--only",
        metavar="TRIAL",
        help="one start of an encoder (default: all)",
    )
    add("--no-report", action="store_true", help="do not make the report")
    add("--title", help="the report's heading (default: the question)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is left; 0 if all is done or the time is up, 1 if some failed, 128 + N by signal."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(given)
    import torch

    from moco_det.runs.folder import check_results
    from moco_det.runs.studies import flow, pieces, study
    from moco_det.runs.studies.data_sets import read_data
    from moco_det.runs.suites import matrix, runner, slurm
    from pretrain.config import load_config
    from pretrain.probe.features import labelled_pair
    from pretrain.probe.options import PROTOCOLS

    files = [find_study(name) for name in args.studies]
    studies = [study.read_study(file) for file in files]
    output = args.output or Path("runs") / files[0].stem
    data = read_data(studies, args.data, output)
    flow.check_probes(studies, PROTOCOLS)
    on_gpu = bool(args.gpus) or (not args.slurm and torch.cuda.is_available())
    slots = runner.read_slots(args.gpus, 1, args.at_once)
    choice = choose_engine(args.engine)
    made = pieces.build_pieces(
        studies,
        output,
        data,
        seeds=None if args.seeds is None else matrix.read_seeds(args.seeds, 0),
        engine=choice.engine,
        device="" if on_gpu else "cpu",
    )
    if args.only is not None:
        made = made.only(args.only)
    flow.check(made, engine=choice.engine, check_pretraining=load_config)
    flow.show_what_is_left(made, output)
    if args.dry_run:
        return 0
    if args.slurm:
        task = slurm.task_command(given, engine=choice.engine, gpus=1 if args.gpus else 0)
        script = slurm.write_job_array(
            flow.trials_left(made, output),
            output,
            command=[sys.executable, "-m", "moco_det_tools.study", *task],
            gpus=1 if args.gpus else 0,
            directives=args.sbatch,
        )
        print(f"submit it with: sbatch {shlex.quote(str(script))}")
        print(f"then see its report with: {command('study', *args.studies, '-o', output)}")
        return 0
    data.make()
    flow.check_pairs(studies, data, labelled_pair)
    check_results(output / "results.jsonl")
    return flow.run_and_report(
        studies,
        made,
        output,
        slots,
        budget=args.budget,
        lean=args.lean,
        report=not args.no_report,
        title=args.title,
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
