"""Copy images into WebDataset shards for pre-training, in random order and with an index.

Or write the index of shards that exist.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from moco_det_tools.entry import at_least, make_parser, run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser("make-shards", __doc__, example="images/ --output shards/")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "images",
        nargs="?",
        help="a folder, a text list, voc://DIR?split=train or coco://instances.json?images=DIR",
    )
    what.add_argument(
        "--index",
        metavar="SHARDS",
        help="count the samples of DIR/name-{000000..000099}.tar and write DIR/shards.json "
        "(default: make shards of images)",
    )
    add = p.add_argument
    add("--output", metavar="DIR", help="the folder to make, needed with images (default: none)")
    add("--name", default="images", help="what the shards' names begin with")
    add("--shard-mb", type=at_least(1), default=256, metavar="MIB", help="size of a shard")
    add("--seed", type=at_least(0), default=0, metavar="N", help="seed of the images' order")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write, print the DATA.PATH of the shards."""
    command = parser()
    args = command.parse_args(argv)
    if args.images and not args.output:
        command.error("--output DIR is needed")
    # Imported here so that --help does not wait for torch.
    from pretrain.data.listing import list_images
    from pretrain.data.shard_files import write_index, write_shards

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if args.index:
        images = write_index(args.index)
        print(f"{args.index}  # {images} images")
        return 0
    listed = list_images(args.images, key="images")
    print(write_shards(listed, args.output, name=args.name, shard_mb=args.shard_mb, seed=args.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
