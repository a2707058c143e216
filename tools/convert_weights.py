"""Convert a checkpoint to a backbone file, with proof; or look into one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from moco_det.foundation.errors import InputError
from moco_det.weights.convert import convert
from moco_det.weights.formats import ENCODERS, FORMATS
from moco_det.weights.inspection import inspect
from moco_det.weights.summaries import conversion_lines, table_lines
from moco_det_tools.entry import run


def parser() -> argparse.ArgumentParser:
    """The command line of convert_weights."""
    names = ", ".join(row.name for row in FORMATS)
    parse = argparse.ArgumentParser(
        prog="convert_weights",
        description="Convert a ResNet checkpoint to a backbone file; nothing unproven is written.",
        epilog=f"Formats: {names}. The layouts and the published files are in docs/weights.md.",
    )
    parse.add_argument("input", metavar="INPUT", help="the checkpoint")
    parse.add_argument(
        "output",
        metavar="OUTPUT",
        nargs="?",
        help=".pkl or .safetensors for detection, .pth for torchvision",
    )
    parse.add_argument(
        "--from", dest="source", metavar="FORMAT", help="take the input as this format"
    )
    parse.add_argument(
        "--to",
        dest="target",
        metavar="FORMAT",
        help="detectron2, torchvision or timm; by default what OUTPUT's suffix says",
    )
    parse.add_argument(
        "--encoder",
        choices=ENCODERS,
        help="which encoder, where the file has two (each format's default is printed; "
        "docs/weights.md)",
    )
    parse.add_argument(
        "--overwrite", action="store_true", help="replace OUTPUT if another file has its name"
    )
    parse.add_argument(
        "--inspect",
        action="store_true",
        help="only say what INPUT is; exit code 2 if it cannot be converted",
    )
    parse.add_argument("--json", action="store_true", help="with --inspect: as json")
    return parse


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
        overwrite=arguments.overwrite,
    )
    print("\n".join(conversion_lines(conversion)))
    return 0


def print_inspection(arguments: argparse.Namespace) -> int:
    """Print what INPUT is; InputError after it where it cannot be converted."""
    if arguments.output is not None or arguments.target is not None or arguments.overwrite:
        raise InputError("--inspect writes nothing: leave OUTPUT, --to and --overwrite out")
    facts = inspect(arguments.input, source_format=arguments.source, encoder=arguments.encoder)
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(table_lines(facts)))
    if facts["problem"] is not None:
        raise InputError(facts["problem"])
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
