"""A run's detector as a file that needs none of this project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moco_det.data import load_datasets
from moco_det.foundation.atomic import make_folder, replacing
from moco_det.foundation.errors import InputError
from moco_det.runs.predictor import Predictor, describe_images

SUFFIX = ".pt2"


def export_detector(
    run: str | Path,
    output: Path,
    *,
    image: Path | None = None,
    weights: str | Path | None = None,
    classes: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> str:
    """Write a run's detector as a program of torch.export, in float32; what was done, in a line.

    Before the file is kept it is compared with the detector on ``image``, or on the first image of
    the run's test set. Raises InputError for bad input, and where they differ.
    """
    from moco_det.standalone.build import build_mapper
    from moco_det.standalone.export import export_program, least_side

    if output.suffix != SUFFIX:
        raise InputError(f"-o {output}: name a file that ends in {SUFFIX}, as torch.export has it")
    make_folder(output.parent)
    predictor = Predictor(
        run,
        weights=weights,
        classes=classes,
        overrides=[*overrides, "MODEL.DEVICE", "cpu"],
        engine="standalone",
    )
    cfg, detector = predictor.cfg, predictor.detector.model
    if image is None:
        try:
            record = load_datasets(cfg.DATASETS.TEST).records[0]
        except InputError as error:
            raise InputError(
                f"the test set cannot be read ({error}): name an image to compare on by --image"
            ) from None
    else:
        record = describe_images({image.name: image}, predictor.classes).records[0]
    pixels = build_mapper(cfg, train=False)(record).image
    metadata = {
        "classes": predictor.classes,
        "format": cfg.INPUT.FORMAT,
        "short_edge": cfg.INPUT.MIN_SIZE_TEST,
        "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
        "least_side": least_side(detector),
        "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
    }
    content, differences, count = export_program(detector, pixels, metadata)
    with replacing(output) as file:
        file.write(content)
    shown = ", ".join(f"{name} {value:.2g}" for name, value in differences.items())
    return (
        f"{output}: {len(content) / 2**20:.0f} MiB; as the detector on {record.file_name} "
        f"({count} detections) and on a corner of it; largest differences: {shown}"
    )
