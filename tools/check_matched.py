"""Prove that configs differ in their initialisation and in nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from moco_det_tools.entry import add_engine, make_parser, run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser("check-matched", __doc__, example="coco_R50_FPN_2x_moco coco_R50_FPN_2x_random")
    p.add_argument(
        "files", nargs="+", metavar="FILE|NAME", help="one config per arm: a yaml or a zoo's name"
    )
    add_engine(p)
    p.add_argument(
        "--without-weights",
        action="store_true",
        help="do not open MODEL.WEIGHTS: no arm may then have an input of its own",
    )
    p.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        dest="overrides",
        help="config keys over every file, as train-net is given them (default: none)",
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Print the proof; 0 where the arms are matched, 1 where they are not."""
    args = parser().parse_args(argv)
    # Imported here so that --help does not wait.
    from moco_det.results.matched import INPUT_KEYS
    from moco_det.runs.engines import choose_engine
    from moco_det.runs.matched_files import match_files
    from moco_det.settings.zoo import find_config

    matched = match_files(
        [find_config(file) for file in args.files],
        args.overrides,
        engine=choose_engine(args.engine).engine,
        read_weights=not args.without_weights,
    )
    print("\n".join(matched.lines()))
    if args.without_weights and any(d.key in INPUT_KEYS for d in matched.forbidden):
        print("the weights were not opened: an arm's own input is allowed where they demand it")
    return 0 if matched.ok else 1


if __name__ == "__main__":
    raise SystemExit(run(main))
