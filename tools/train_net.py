"""Fine-tune and score a detector from a config, on detectron2 or on the standalone engine."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from moco_det.foundation.launching import meeting_place
from moco_det.runs.engines import choose_engine, load_config
from moco_det.settings.engine import ENGINES, RunOptions
from moco_det_tools.entry import run


def parser() -> argparse.ArgumentParser:
    """The options of detectron2's default_argument_parser, and the engine's."""
    p = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python tools/train_net.py --config-file configs/quick/R18_FPN.yaml "
        "MODEL.WEIGHTS weights/moco.pkl MODEL.DEVICE cpu",
    )
    p.add_argument("--config-file", required=True, metavar="FILE", help="path to the yaml")
    p.add_argument("--resume", action="store_true", help="go on from OUTPUT_DIR's checkpoint")
    p.add_argument("--eval-only", action="store_true", help="score, do not train")
    p.add_argument("--num-gpus", type=int, default=1, help="processes (GPUs) on each machine")
    p.add_argument("--num-machines", type=int, default=1, help="number of machines")
    p.add_argument("--machine-rank", type=int, default=0, help="this machine's rank")
    p.add_argument(
        "--dist-url", help="where the processes of several machines meet, tcp://HOST:PORT"
    )
    p.add_argument("--engine", choices=ENGINES, default="auto", help="auto: detectron2 if it is")
    p.add_argument("--init-name", help="name of the arm in the results (default: from the weights)")
    p.add_argument("--results", type=Path, help="results file (default: OUTPUT_DIR/results.jsonl)")
    p.add_argument("--strict", action="store_true", help="one broken image is an error")
    p.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config overrides")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Train, or score with ``--eval-only``; 0 when done."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    command = shlex.join([Path(sys.argv[0]).name, *(argv if argv is not None else sys.argv[1:])])
    args.dist_url = meeting_place(
        processes=args.num_gpus,
        machines=args.num_machines,
        machine_rank=args.machine_rank,
        url=args.dist_url,
    )
    choice = choose_engine(args.engine)
    if choice.broken:
        print(f"--engine auto takes standalone: {choice.reason}")

    from moco_det.runs.run import launch_run

    launch_run(
        load_config(choice.engine, args.config_file, args.opts),
        RunOptions(
            config_file=args.config_file,
            resume=args.resume,
            eval_only=args.eval_only,
            strict=args.strict,
            results=args.results,
            init_name=args.init_name,
            command=command,
        ),
        engine=choice.engine,
        processes=args.num_gpus,
        machines=args.num_machines,
        machine_rank=args.machine_rank,
        url=args.dist_url,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
