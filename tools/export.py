"""Write a trained detector as a file that torch and torchvision run without this project.

The file is a program of torch.export in float32, for one image of any size. It is kept where it
finds what the detector finds in an image; docs/detectors.md shows its use.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from moco_det.runs.export import export_detector
from moco_det_tools.entry import add_classes_and_keys, make_parser, run


def parser() -> argparse.ArgumentParser:
    """The command line of this tool."""
    p = make_parser("export", __doc__, example="runs/moco -o detector.pt2")
    add = p.add_argument
    add("run", metavar="RUN", help="a run's folder, or a config file")
    add("-o", "--output", required=True, type=Path, metavar="FILE", help="the file, NAME.pt2")
    add("--weights", metavar="FILE", help="checkpoint (default: model_final.pth beside the config)")
    add(
        "--image",
        type=Path,
        metavar="FILE",
        help="an image to compare on (default: the first one of the run's test set)",
    )
    add_classes_and_keys(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Export, compare, write; 0 when done."""
    args = parser().parse_args(argv)
    line = export_detector(
        args.run,
        args.output,
        image=args.image,
        weights=args.weights,
        classes=args.classes,
        overrides=args.opts,
    )
    print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
