"""Fine-tune and score a detector from a config, on detectron2 or on the standalone engine."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from moco_det.foundation.commands import command
from moco_det.foundation.launching import ProcessLayout, meeting_place
from moco_det.runs.engines import choose_engine, load_config
from moco_det.settings.engine import RunOptions
from moco_det.settings.zoo import find_config
from moco_det_tools.entry import add_engine, make_parser, run


def parser() -> argparse.ArgumentParser:
    """The options of detectron2's default_argument_parser, and the engine's."""
    p = make_parser(
        "train-net",
        __doc__,
        example="--config-file R18_FPN MODEL.WEIGHTS weights/moco.pkl MODEL.DEVICE cpu",
    )
    add, count = p.add_argument, partial(p.add_argument, type=int, metavar="N")
    add("--config-file", required=True, metavar="FILE|NAME", help="a yaml file or a zoo's name")
    add("--resume", action="store_true", help="go on from OUTPUT_DIR's checkpoint")
    add("--eval-only", action="store_true", help="score, do not train")
    count("--num-gpus", default=1, help="processes (GPUs) on each machine")
    count("--num-machines", default=1, help="number of machines")
    count("--machine-rank", default=0, help="this machine's rank")
    add(
        "--dist-url",
        metavar="URL",
        help="where the processes of several machines meet, tcp://HOST:PORT "
        "(default: a port of this machine)",
    )
    add_engine(p)
    add("--init-name", metavar="ARM", help="the arm in the results (default: from the weights)")
    add(
        "--results",
        type=Path,
        metavar="FILE",
        help="file that the row is added to (default: OUTPUT_DIR/results.jsonl)",
    )
    add(
        "--convert",
        action="store_true",
        help="convert MODEL.WEIGHTS first where they are anybody's checkpoint (to weights/)",
    )
    add("--strict", action="store_true", help="one broken image is an error")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys over the file's")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or score with ``--eval-only``; 0 when done."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    given = list(sys.argv[1:] if argv is None else argv)
    config_file = find_config(args.config_file)
    layout = meeting_place(
        ProcessLayout(args.num_gpus, args.num_machines, args.machine_rank, args.dist_url)
    )
    choice = choose_engine(args.engine)
    if choice.broken:
        print(f"--engine auto takes standalone: {choice.reason}")

    from moco_det.runs.run import launch_run
    from moco_det.runs.weights_file import ready_weights

    cfg = load_config(choice.engine, config_file, args.opts)
    if args.convert and cfg.MODEL.WEIGHTS:
        ready = ["MODEL.WEIGHTS", str(ready_weights(cfg.MODEL.WEIGHTS))]
        cfg = load_config(choice.engine, config_file, [*args.opts, *ready])
    launch_run(
        cfg,
        RunOptions(
            config_file=config_file,
            resume=args.resume,
            eval_only=args.eval_only,
            strict=args.strict,
            results=args.results,
            init_name=args.init_name,
            command=command("train-net", *given),
        ),
        choice.engine,
        layout,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
