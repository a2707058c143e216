"""Pictures: each test image once as JPEG, the arms' boxes and masks over it as vectors."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from markupsafe import Markup

from moco_det.data import DetectionDataset, Record, load_datasets, read_image
from moco_det.foundation.errors import InputError
from moco_det.report.charts import text_width
from moco_det.report.detections import (
    Box,
    Frame,
    above,
    best_threshold,
    choose_images,
    free_spot,
    match,
    outlines,
    read_boxes,
)
from moco_det.report.document import Block, Picture, Pictures, render, text
from moco_det.report.formats import counted
from moco_det.report.groups import Group, config_of
from moco_det.report.sentences import say
from moco_det.results import Row

# Pictures are drawn for the first settings only: the file must stay small enough to send.
PICTURE_BYTES, LEAST_BYTES = 1_900_000, 400_000
LARGEST, AT_RANDOM = 3, 3

# Long side of an embedded picture in pixels, and of the drawing over it in its own units.
PICTURE_SIDE = 480
CANVAS = 400.0
FONT = 19.0
CLASS_COLOURS = 8
MAX_PANEL_BOXES = 100

# With more boxes than this only those wide enough for it carry their class's name.
FEW_BOXES = 6


class ShownArm(NamedTuple):
    """An arm's boxes by image, from the score that is its limit."""

    label: str
    limit: float
    found: Mapping[str, Sequence[Box]]


class Canvas(NamedTuple):
    """An image to draw upon: the id of its pixels on the page, and the colours of the classes."""

    record: Record
    key: str
    colours: Mapping[str, int]

    @property
    def frame(self) -> tuple[float, float, float]:
        """(width, height, units per pixel) of the drawing."""
        scale = CANVAS / max(self.record.width, self.record.height)
        return self.record.width * scale, self.record.height * scale, scale


def blocks(group: Group, spent: list[int]) -> list[Block]:
    """The detections of a setting; `spent` counts the bytes of the pictures so far."""
    if PICTURE_BYTES - sum(spent) <= LEAST_BYTES:
        return [text("No pictures here: those of the settings above fill the file.")]
    found = _blocks(group)
    for shown in (block for block in found if isinstance(block, Pictures)):
        drawings = [svg for picture in shown.pictures for _, _, svg in picture.panels]
        spent += map(len, [shown.pixels, *drawings])
    return found


def _blocks(group: Group) -> list[Block]:
    """The pictures of a setting, or a stated reason why there are none; never raises for input.

    Of each arm one run is shown: that of the lowest seed that all the arms share.
    """
    trials = set.intersection(*({row.trial for row in arm.rows} for arm in group.arms))
    if not trials:
        return [text("The arms share no seed, so no detections are shown side by side.")]
    try:
        dataset = _test_set(group.arms[0].rows[0])
    except (InputError, OSError) as error:
        reason = " ".join(str(error).split())
        return [text(f"The test images could not be opened, so none are shown: {reason}")]
    records = {str(record.image_id): record for record in dataset.records}
    truth = {key: _truth(record, dataset.classes) for key, record in records.items()}
    arms: list[ShownArm] = []
    notes: list[str] = []
    for arm in group.arms:
        row = next(row for row in arm.rows if row.trial == min(trials))
        try:
            boxes = read_boxes(row.file("predictions.json"), dataset)
        except InputError as error:
            notes.append(f"{arm.label} is not shown: {' '.join(str(error).split())}.")
            continue
        limit = best_threshold(boxes, truth)
        arms.append(ShownArm(arm.label, limit, above(boxes, limit)))
    if not arms:
        return [text(" ".join(["No run has detections that can be shown.", *notes]))]
    found = [arm.found for arm in arms]
    chosen = choose_images(list(records), found, largest=LARGEST, at_random=AT_RANDOM)
    seen = {box.category for image, _ in chosen for box in truth[image]}
    seen |= {box.category for image, _ in chosen for of in found for box in of.get(image, ())}
    names = [name for name in dataset.classes if name in seen]
    colours = {name: i % CLASS_COLOURS for i, name in enumerate(names)}
    pixels, drawn = Markup(""), []
    for i, (image, why) in enumerate(chosen):
        canvas = Canvas(records[image], f"picture-{group.index}-{i}", colours)
        try:
            pixels += _embedded(canvas)
        except InputError as error:
            notes.append(f"Not shown: {error}")
            continue
        drawn.append(Picture(image, why, _panels(canvas, truth[image], arms)))
    limits = [f"{arm.limit:.2f} for {arm.label}" for arm in arms]
    shown: list[Block] = [
        text(say("pictures", limits=limits, seed=min(trials)[0], title=group.title)),
        Pictures(drawn, list(colours.items()), pixels),
    ]
    return [*(shown if drawn else []), *([text(" ".join(notes))] if notes else [])]


def _test_set(row: Row) -> DetectionDataset:
    """The test set of a row; InputError where it no longer is what was measured."""
    named = config_of(row).get("DATASETS.TEST") or str(row.data["dataset"]["test"])
    uris = [named] if isinstance(named, str) else [str(uri) for uri in named]
    dataset = load_datasets(uris, classes=tuple(row.data["dataset"]["classes"]))
    if dataset.fingerprint != row.data["dataset"]["test_fingerprint"]:
        raise InputError("the data at that place is no longer what was measured.")
    return dataset


def _truth(record: Record, classes: Sequence[str]) -> list[Box]:
    return [
        Box(a.bbox, classes[a.category], None, a.segmentation, a.iscrowd or a.difficult)
        for a in record.annotations
    ]


def _embedded(canvas: Canvas) -> Markup:
    """The image as a JPEG data URI of at most 480 px, in the drawing's units."""
    pixels = read_image(canvas.record.file_name)
    scale = min(1.0, PICTURE_SIDE / max(pixels.shape[:2]))
    if scale < 1.0:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    _, data = cv2.imencode(".jpg", pixels[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    width, height, _ = canvas.frame
    return Markup(
        f'<image id="{canvas.key}" width="{width:.1f}" height="{height:.1f}" '
        'preserveAspectRatio="none" '
        f'href="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode("ascii")}"/>'
    )


def _panels(
    canvas: Canvas, truth: Sequence[Box], arms: Sequence[ShownArm]
) -> list[tuple[str, str, Markup]]:
    """The ground truth and each arm's view of one image."""
    asked = counted(sum(not box.ignored for box in truth), "object")
    panels = [("ground truth", asked, _draw(canvas, truth, [False] * len(truth)))]
    for arm in arms:
        boxes = arm.found.get(str(canvas.record.image_id), [])
        met = match(boxes, truth)
        counts = f"{sum(met.right)} right, {sum(met.wrong)} wrong, {met.missed} missed"
        panels.append((arm.label, counts, _draw(canvas, boxes, met.wrong)))
    return panels


def _draw(canvas: Canvas, boxes: Sequence[Box], wrong: Sequence[bool]) -> Markup:
    width, height, scale = canvas.frame
    shapes, tags = [], []
    placed: list[Frame] = []
    for box, bad in list(zip(boxes, wrong, strict=True))[:MAX_PANEL_BOXES]:
        x0, y0, x1, y1 = frame = (*(value * scale for value in box.xyxy),)
        path = "".join(
            "M" + "L".join(f"{x * scale:.1f} {y * scale:.1f}" for x, y in shape) + "Z"
            for shape in outlines(box.segmentation, 0.7 / scale)
        )
        colour = canvas.colours.get(box.category, 0)
        score = "" if box.score is None else f" {box.score:.2f}"
        shapes.append((colour, box, bad, frame, path, score))
        name = box.category if len(box.category) <= 16 else box.category[:15] + "…"
        label = name + score.replace(" 0.", " .")
        size = text_width(label, FONT) + 6, FONT + 3
        if len(boxes) > FEW_BOXES and x1 - x0 < 0.7 * size[0]:
            continue
        # A class's name on its colour where it covers no other label; the colour alone otherwise.
        if spot := free_spot((x0, y0, x1, y1), size, (width, height), placed):
            tags.append((colour, label, *spot, *size))
    # The best-scored boxes are drawn last, so on top, but got their labels first.
    drawn = {"width": width, "height": height, "shapes": shapes[::-1], "tags": tags}
    return Markup(render("picture.svg.j2", {"canvas": canvas, **drawn}))
