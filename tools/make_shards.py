"""Images to WebDataset shards: tools/make_shards.py IMAGES --output DIR | --index SHARDS"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from moco_det_tools.entry import run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    made = argparse.ArgumentParser(
        prog="make_shards",
        description="Copy images into WebDataset shards for pre-training, in random order and with "
        "an index; or write the index of shards that exist.",
    )
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "images",
        nargs="?",
        help="a folder, a text list, voc://DIR?split=train or coco://instances.json?images=DIR",
    )
    what.add_argument(
        "--index",
        metavar="SHARDS",
        help="count the samples of DIR/name-{000000..000099}.tar and write DIR/shards.json",
    )
    made.add_argument("--output", metavar="DIR", help="the folder to make")
    made.add_argument("--name", default="images", help="what the shards' names begin with")
    made.add_argument("--shard-mb", type=int, default=256, metavar="MIB", help="size of a shard")
    made.add_argument("--seed", type=int, default=0, help="of the images' order")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write, print the DATA.PATH of the shards."""
    command = parser()
    args = command.parse_args(argv)
    if args.images and not args.output:
        command.error("--output DIR is needed")
    if args.shard_mb < 1 or args.seed < 0:
        command.error("--shard-mb must be at least 1 and --seed at least 0")
    # Imported here so that --help does not wait for torch.
    from pretrain.data.listing import list_images
    from pretrain.data.write_shards import write_index, write_shards

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
