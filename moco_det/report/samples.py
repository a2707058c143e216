"""Sample pictures: each test image once as JPEG, the arms' boxes and masks over it as vectors."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

from moco_det.foundation.errors import InputError
from moco_det.report.detections import (
    Box,
    above,
    best_threshold,
    choose_images,
    match,
    outlines,
    read_boxes,
)
from moco_det.report.formats import listed
from moco_det.report.groups import Arm, Group
from moco_det.report.labels import free_spot, text_width
from moco_det.results import Row
from moco_det.results.matched import flatten_config

if TYPE_CHECKING:
    from moco_det.data import DetectionDataset, Record

LARGEST, AT_RANDOM = 3, 3

# Long side of an embedded picture in pixels, and of the drawing over it in its own units.
PICTURE_SIDE = 480
CANVAS = 400.0
FONT = 19.0
CLASS_COLOURS = 8
MAX_PANEL_BOXES = 100

# With more boxes than this only those wide enough for it carry their class's name.
FEW_BOXES = 6


@dataclass(frozen=True)
class Panel:
    """One arm's (or the ground truth's) view of one image."""

    label: str
    counts: str
    svg: Markup


@dataclass(frozen=True)
class Sample:
    """One image, why it is shown, and its panels: ground truth first."""

    name: str
    why: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Samples:
    """The pictures of one setting; `limits` says the scores they begin at, `note` what is missing,
    `defs` holds the pixels."""

    samples: tuple[Sample, ...]
    legend: tuple[tuple[str, int], ...]
    seed: int | None
    limits: str
    note: str
    defs: Markup

    @property
    def size(self) -> int:
        """Characters that the pictures and what is drawn over them add to the page."""
        panels = (panel for sample in self.samples for panel in sample.panels)
        return len(self.defs) + sum(len(panel.svg) for panel in panels)


def draw_samples(group: Group, number: int, *, pictures: int = LARGEST + AT_RANDOM) -> Samples:
    """The pictures of a setting, or a stated reason why there are none; never raises for input.

    `number` tells settings on one page apart. Of each arm one run is shown: that of the lowest
    seed that all the arms share.
    """
    seeds = set.intersection(*({row.seed for row in arm.rows} for arm in group.arms))
    if not seeds:
        return _nothing("The arms share no seed, so no detections are shown side by side.")
    seed = min(seeds)
    dataset, reason = _test_set(group.first)
    if dataset is None:
        return _nothing(f"The test images could not be opened, so none are shown: {reason}")
    shown: list[Arm] = []
    found: list[dict[str, list[Box]]] = []
    notes: list[str] = []
    for arm in group.arms:
        row = next(row for row in arm.rows if row.seed == seed)
        try:
            found.append(read_boxes(row.run_dir / "predictions.json", dataset))
            shown.append(arm)
        except InputError as error:
            notes.append(f"{arm.label} is not shown: {' '.join(str(error).split())}.")
    if not found:
        return _nothing(" ".join(["No run has detections that can be shown.", *notes]))
    records = {str(record.image_id): record for record in dataset.records}
    truth = {key: _truth(record, dataset.classes) for key, record in records.items()}
    limits = [best_threshold(boxes, truth) for boxes in found]
    found = [above(boxes, limit) for boxes, limit in zip(found, limits, strict=True)]
    chosen = choose_images(
        list(records), found, largest=(pictures + 1) // 2, at_random=pictures // 2
    )
    colours = _class_colours(
        dataset.classes,
        [
            [dataset.classes[a.category] for a in records[image_id].annotations]
            + [box.category for predictions in found for box in predictions.get(image_id, [])]
            for image_id, _ in chosen
        ],
    )
    samples: list[Sample] = []
    defs = Markup("")
    for i, (image_id, why) in enumerate(chosen):
        record = records[image_id]
        key = f"picture-{number}-{i}"
        try:
            picture = _embed(record, key)
        except InputError as error:
            notes.append(f"Not shown: {error}")
            continue
        defs += picture
        panels = _panels(
            record,
            truth[image_id],
            [arm.label for arm in shown],
            [predictions.get(image_id, []) for predictions in found],
            key,
            colours,
        )
        samples.append(Sample(name=image_id, why=why, panels=panels))
    used = tuple((name, colour) for name, colour in colours.items())
    said = listed(
        [f"{limit:.2f} for {arm.label}" for arm, limit in zip(shown, limits, strict=True)]
    )
    return Samples(tuple(samples), used, seed, said, " ".join(notes), defs)


def _class_colours(classes: Sequence[str], seen: Sequence[Sequence[str]]) -> dict[str, int]:
    """Colours of the classes that occur in the pictures, in the data's order."""
    names = {name for picture in seen for name in picture}
    ordered = [name for name in classes if name in names] + sorted(names - set(classes))
    return {name: i % CLASS_COLOURS for i, name in enumerate(ordered)}


def _nothing(note: str) -> Samples:
    return Samples((), (), None, "", note, Markup(""))


def _test_set(row: Row) -> tuple[DetectionDataset | None, str]:
    """The test set of a row if it still is what was measured, else the reason."""
    # Only this section needs the images; the numbers are reported without them.
    from moco_det.data import load_datasets

    try:
        named = flatten_config(str(row.data["config"])).get("DATASETS.TEST") or []
        uris = [named] if isinstance(named, str) else [str(uri) for uri in named]
        uris = uris or [str(row.data["dataset"]["test"])]
        classes = tuple(row.data["dataset"]["classes"])
        dataset = load_datasets(uris, classes=classes)
        if dataset.fingerprint != row.data["dataset"]["test_fingerprint"]:
            return None, "the data at that place is no longer what was measured."
    except (InputError, OSError) as error:
        return None, " ".join(str(error).split())
    return dataset, ""


def _embed(record: Record, key: str) -> Markup:
    """The image as a JPEG data URI of at most 480 px, in the drawing's units."""
    import cv2

    from moco_det.data import read_image

    pixels = read_image(record.file_name)
    scale = min(1.0, PICTURE_SIDE / max(pixels.shape[:2]))
    if scale < 1.0:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    ok, data = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not ok:
        raise InputError(f"image {record.file_name} cannot be encoded")
    width, height = _canvas(record)
    text = base64.b64encode(data.tobytes()).decode("ascii")
    return Markup(
        f'<image id="{key}" width="{width:.1f}" height="{height:.1f}" '
        f'preserveAspectRatio="none" href="data:image/jpeg;base64,{text}"/>'
    )


def _truth(record: Record, classes: Sequence[str]) -> list[Box]:
    return [
        Box(a.bbox, classes[a.category], None, a.segmentation, a.iscrowd or a.difficult)
        for a in record.annotations
    ]


def _panels(
    record: Record,
    truth: Sequence[Box],
    labels: Sequence[str],
    found: Sequence[Sequence[Box]],
    key: str,
    colours: dict[str, int],
) -> tuple[Panel, ...]:
    asked = sum(not box.ignored for box in truth)
    panels = [
        Panel(
            "ground truth",
            f"{asked} objects" if asked != 1 else "1 object",
            _draw(record, truth, [False] * len(truth), key, colours),
        )
    ]
    for label, boxes in zip(labels, found, strict=True):
        outcome = match(boxes, truth)
        counts = f"{sum(outcome.right)} right, {sum(outcome.wrong)} wrong, {outcome.missed} missed"
        svg = _draw(record, boxes, outcome.wrong, key, colours)
        panels.append(Panel(label, counts, svg))
    return tuple(panels)


def _draw(
    record: Record,
    boxes: Sequence[Box],
    wrong: Sequence[bool],
    key: str,
    colours: dict[str, int],
) -> Markup:
    width, height = _canvas(record)
    scale = width / record.width
    parts = [f'<use href="#{key}"/>']
    texts = []
    placed: list[tuple[float, float, float, float]] = []
    # The best-scored boxes are drawn last, so on top, but get their labels first.
    for box, bad in list(zip(boxes, wrong, strict=True))[:MAX_PANEL_BOXES]:
        x0, y0, x1, y1 = (value * scale for value in box.xyxy)
        colour = colours.get(box.category, 0)
        score = "" if box.score is None else f" {box.score:.2f}"
        path = "".join(
            "M" + "L".join(f"{x * scale:.1f} {y * scale:.1f}" for x, y in shape) + "Z"
            for shape in outlines(
                box.segmentation, height=record.height, width=record.width, tolerance=0.7 / scale
            )
        )
        wrong_one = " wrong" if bad else ""
        mask = f'<path class="mask{wrong_one}" d="{path}"/>' if path else ""
        frame = (
            f'<rect class="box{wrong_one}" x="{x0:.1f}" y="{y0:.1f}" '
            f'width="{max(x1 - x0, 0):.1f}" height="{max(y1 - y0, 0):.1f}"/>'
        )
        title = escape(f"{box.category}{score}{' (no such object here)' if bad else ''}")
        parts.insert(1, f'<g class="k{colour}">{mask}{frame}<title>{title}</title></g>')
        frame_at = (x0, y0, x1, y1)
        crowded = len(boxes) > FEW_BOXES
        texts.append(_label(box, frame_at, colour, width, height, placed, crowded=crowded))
    return Markup(
        f'<svg class="picture" viewBox="0 0 {width:.1f} {height:.1f}" role="img" '
        f'aria-label="{escape(str(record.image_id))}">{"".join(parts)}{"".join(texts)}</svg>'
    )


def _label(
    box: Box,
    frame: tuple[float, float, float, float],
    colour: int,
    width: float,
    height: float,
    placed: list[tuple[float, float, float, float]],
    *,
    crowded: bool,
) -> str:
    """A class name on its colour where it covers no other label; the colour alone otherwise."""
    name = box.category if len(box.category) <= 16 else box.category[:15] + "…"
    text = name if box.score is None else f"{name} {box.score:.2f}".replace(" 0.", " .")
    long, tall = text_width(text, FONT) + 6, FONT + 3
    if crowded and frame[2] - frame[0] < 0.7 * long:
        return ""
    spot = free_spot(frame, (long, tall), (width, height), placed)
    if spot is None:
        return ""
    x, y = spot
    return (
        f'<g class="tag k{colour}"><rect x="{x:.1f}" y="{y:.1f}" width="{long:.1f}" '
        f'height="{tall:.1f}" rx="2"/><text x="{x + 3:.1f}" y="{y + FONT - 2:.1f}">'
        f"{escape(text)}</text></g>"
    )


def _canvas(record: Record) -> tuple[float, float]:
    scale = CANVAS / max(record.width, record.height)
    return record.width * scale, record.height * scale


def rule() -> str:
    """How the images are chosen, in words, for the caption."""
    return (
        "Images are chosen by rule: some drawn at random with a fixed seed, then those with the "
        "most detections that one arm of a pair has and the other lacks. Each arm is shown with "
        "the boxes of at least the score at which its F1 over all test images is highest. A dashed "
        "box, its mask not filled, has no object of its class under it. Same everywhere: IoU of at "
        "least 0.5."
    )
