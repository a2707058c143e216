"""Convert a checkpoint of a ResNet or a network of timm to a backbone file, with proof.

Or look into one. Nothing unproven is written. docs/weights.md has the layouts and the published
files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from moco_det.foundation.errors import InputError
from moco_det.weights.convert import convert
from moco_det.weights.formats import ENCODERS, FORMATS
from moco_det.weights.inspection import inspect
from moco_det.weights.summaries import conversion_lines, table_lines
from moco_det_tools.entry import make_parser, run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser(
        "convert-weights", __doc__, example="moco_v1_200ep_pretrain.pth.tar weights/moco.pkl"
    )
    add = p.add_argument
    add("input", metavar="INPUT", help="the checkpoint")
    add(
        "output",
        metavar="OUTPUT",
        nargs="?",
        help=".pkl or .safetensors for detection, .pth for torchvision or timm",
    )
    names = ", ".join(row.name for row in FORMATS)
    add(
        "--from",
        dest="source",
        metavar="FORMAT",
        help=f"take the input as this format, one of {names} (default: recognised from its keys)",
    )
    add(
        "--to",
        dest="target",
        metavar="FORMAT",
        help="detectron2, torchvision or timm (default: what OUTPUT's suffix says)",
    )
    add(
        "--encoder",
        choices=ENCODERS,
        help="which encoder, where the file has two (default: its format's, which is printed)",
    )
    add(
        "--prefix",
        help="what the names of the network begin with, where the file holds several that no "
        "format names (default: the only one)",
    )
    add(
        "--arch",
        metavar="NAME",
        help="which network of timm INPUT is, as convnext_tiny or convnext_tiny.fb_in22k (default: "
        "what the file or a config.json beside it says; ResNets are known by their shapes)",
    )
    add("--overwrite", action="store_true", help="replace OUTPUT if another file has its name")
    add(
        "--inspect",
        action="store_true",
        help="only say what INPUT is; exit code 2 if it cannot be converted",
    )
    add("--json", action="store_true", help="print what --inspect finds as json")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Convert, or inspect. Returns 0; bad input raises InputError."""
    arguments = parser().parse_args(argv)
    if arguments.inspect:
        return print_inspection(arguments)
    if arguments.json:
        raise InputError("--json belongs to --inspect")
    if arguments.output is None:
        raise InputError("no OUTPUT named: give one, or --inspect to look only")
    conversion = convert(
        arguments.input,
        arguments.output,
        source_format=arguments.source,
        target_format=arguments.target,
        encoder=arguments.encoder,
        prefix=arguments.prefix,
        arch=arguments.arch,
        overwrite=arguments.overwrite,
    )
    print("\n".join(conversion_lines(conversion)))
    return 0


def print_inspection(arguments: argparse.Namespace) -> int:
    """Print what INPUT is; InputError after it where it cannot be converted."""
    if arguments.output is not None or arguments.target is not None or arguments.overwrite:
        raise InputError("--inspect writes nothing: leave OUTPUT, --to and --overwrite out")
    facts = inspect(
        arguments.input,
        source_format=arguments.source,
        encoder=arguments.encoder,
        prefix=arguments.prefix,
        arch=arguments.arch,
    )
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(table_lines(facts)))
    if facts["problem"] is not None:
        raise InputError(facts["problem"])
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
