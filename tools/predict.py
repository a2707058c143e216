"""Draw a trained detector's detections on images.

The weights are the model_final.pth beside the config, or those of --weights. Images that do not
open are named and skipped; videos are not read. The output folder holds every image under its
name (as NAME.png unless it is a JPEG), predictions.json (COCO result rows of what is drawn) and
classes.json.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from moco_det.foundation.errors import InputError
from moco_det.runs.predict import FRAMES, find_images, predict_folder
from moco_det.runs.predictor import Predictor
from moco_det.settings.zoo import find_config
from moco_det_tools.entry import add_classes_and_keys, add_engine, make_parser, run


class NoVideo(argparse.Action):
    """An option of detectron2's demo that is not here, and what to do instead."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse it, whatever it was given."""
        raise InputError(f"{'/'.join(self.option_strings)}: images are read here: {FRAMES}")


def parser() -> argparse.ArgumentParser:
    """The options of detectron2's demo, and the engine's."""
    p = make_parser(
        "predict", __doc__, example="--config-file runs/a/config.yaml --input photos/ -o drawn/"
    )
    add = p.add_argument
    add("--config-file", required=True, metavar="FILE|NAME", help="a run's config.yaml, or another")
    add("--input", required=True, nargs="+", metavar="PATH", help="images and folders of images")
    for option, values in (("--video-input", "?"), ("--webcam", 0)):
        add(option, action=NoVideo, nargs=values, help=argparse.SUPPRESS)
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="a folder to be made")
    add("--weights", metavar="FILE", help="checkpoint (default: model_final.pth beside the config)")
    add(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="least score of what is drawn",
    )
    add_engine(p)
    add("--strict", action="store_true", help="one image that does not open is an error")
    add_classes_and_keys(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Detect, draw, write; 0 when done."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    images = find_images(args.input)
    predictor = Predictor(
        find_config(args.config_file),
        weights=args.weights,
        classes=args.classes,
        threshold=args.confidence_threshold,
        overrides=args.opts,
        engine=args.engine,
    )
    choice = predictor.choice
    print(f"engine {choice.engine} ({choice.reason}), {predictor.detector.precision}")
    done = predict_folder(predictor, images, args.output, strict=args.strict)
    print(done.line(args.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
