"""Test declared hypotheses: pre-train, probe and fine-tune what they need, and judge them.

STUDY is a yaml file (docs/studies.md) or one of configs/studies. The same command goes on where it
stopped; nothing is run twice, also not by another study with the same folder. A trial is one start
of an encoder, by its seed, with all that is measured of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from moco_det.foundation.commands import command, duration
from moco_det.runs.engines import choose_engine
from moco_det.settings.zoo import find_study
from moco_det_tools import probe
from moco_det_tools.entry import make_parser, run
from moco_det_tools.matrix_options import add_matrix_options, submit, takes_gpus


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
    add("--data", nargs="+", default=[], metavar="NAME=DIR", help="data of yours (default: none)")
    add(
        "--budget",
        type=duration,
        metavar="TIME",
        help="stop, saved, after 90s, 12m or 3h (default: none)",
    )
    add("--lean", action="store_true", help="remove scored detectors and what a resume needs")
    add_matrix_options(p, of="study", unit="piece", task="trial", title="the question")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is left; 0 if all is done or the time is up, 1 if some failed, 128 + N by signal."""
    given = list(sys.argv[1:] if argv is None else argv)
    args = parser().parse_args(given)
    # Imported here so that --help does not wait.
    from moco_det.runs.folder import check_results
    from moco_det.runs.studies import flow, pieces, study
    from moco_det.runs.studies.data_sets import read_data
    from moco_det.runs.suites import matrix, runner
    from pretrain.build import check_images
    from pretrain.config import load_config
    from pretrain.probe.features import labelled_pair
    from pretrain.probe.options import PROTOCOLS, read_options

    files = [find_study(name) for name in args.studies]
    studies = [study.read_study(file) for file in files]
    output = args.output or Path("runs") / files[0].stem
    data = read_data(studies, args.data, output)
    probe_parser = probe.parser()
    flow.check_probes(
        studies, PROTOCOLS, lambda words: read_options(vars(probe_parser.parse_args(words)))
    )
    slots = runner.read_slots(args.gpus, 1, args.at_once)
    choice = choose_engine(args.engine)
    made = pieces.build_pieces(
        studies,
        output,
        data,
        seeds=None if args.seeds is None else matrix.read_seeds(args.seeds, 0),
        engine=choice.engine,
        device="" if takes_gpus(args) else "cpu",
    )
    if args.only is not None:
        made = made.only(args.only)
    flow.check(made, engine=choice.engine, read_config=load_config)
    flow.show_what_is_left(studies, made, output)
    if args.dry_run:
        return 0
    if args.slurm:
        left, gpus = flow.trials_left(made, output), int(bool(args.gpus))
        submit(args, given, left, output, tool="study", engine=choice.engine, gpus=gpus)
        words = [one for one in given if one != "--slurm" and not one.startswith("--sbatch")]
        again = command("study", *words)
        print(f"when they have ended, see its report with: {again}")
        return 0
    data.make()
    flow.check_data(
        studies,
        made,
        output,
        data,
        read_config=load_config,
        check_images=check_images,
        check_pair=labelled_pair,
    )
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
