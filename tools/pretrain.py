"""Pre-train an encoder on images and write its checkpoint.pth."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from moco_det.settings.zoo import PRETRAINING, find_config
from moco_det_tools.entry import make_parser, run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser(
        "pretrain",
        __doc__,
        example="--config-file pretrain/quick/moco_v2_r18 DATA.PATH images/ OUTPUT_DIR runs/a",
    )
    p.add_argument(
        "--config-file", required=True, metavar="FILE|NAME", help="a yaml file or a zoo's name"
    )
    p.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in OUTPUT_DIR"
    )
    p.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys over the file's"
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, print where the checkpoint is."""
    args = parser().parse_args(argv)
    # Imported here so that --help does not wait for torch.
    from pretrain.config import load_config
    from pretrain.train import train

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    config_file = find_config(args.config_file, patterns=PRETRAINING)
    checkpoint = train(load_config(config_file, args.opts), resume=args.resume)
    if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes speaks for all
        print(checkpoint)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
