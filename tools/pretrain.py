"""Pre-train an encoder: tools/pretrain.py --config-file configs/pretrain/X.yaml [KEY VALUE ...]"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from moco_det_tools.entry import run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    made = argparse.ArgumentParser(prog="pretrain", description="Pre-train an encoder on images.")
    made.add_argument(
        "--config-file", required=True, metavar="FILE", help="configs/pretrain/*.yaml"
    )
    made.add_argument(
        "--resume", action="store_true", help="continue from the newest checkpoint in OUTPUT_DIR"
    )
    made.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys to override, e.g. DATA.PATH images OUTPUT_DIR runs/a",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, train, print where the checkpoint is."""
    args = parser().parse_args(argv)
    # Imported here so that --help does not wait for torch.
    from pretrain.config import load_config
    from pretrain.train import train

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    checkpoint = train(load_config(args.config_file, args.opts), resume=args.resume)
    if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes speaks for all
        print(checkpoint)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
