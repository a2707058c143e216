"""Detections drawn into an image: boxes, masks, and class names with scores."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from moco_det.report.detections import Box, Frame, free_spot, outlines

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

MASK_OPACITY = 0.45
# OpenCV takes fractions of a pixel as integers of this many binary places
FRACTION = 4


def class_colours(classes: Sequence[str]) -> dict[str, Colour]:
    """A bright RGB colour for each class, the same for the same list; neighbours differ most."""
    golden = (5**0.5 - 1) / 2
    colours = {}
    for i, name in enumerate(classes):
        hue, saturation = (0.12 + i * golden) % 1.0, (0.85, 0.55)[i // 8 % 2]
        r, g, b = colorsys.hsv_to_rgb(hue, saturation, 1.0)
        colours[name] = (round(255 * r), round(255 * g), round(255 * b))
    return colours


def draw_detections(image: Pixels, boxes: Sequence[Box], colours: Mapping[str, Colour]) -> Pixels:
    """A copy of the image (H, W, 3) RGB with the boxes over it, the best of them on top.

    Lines and letters grow with the image. A label that would cover another one is left out; its
    box keeps its class's colour.
    """
    canvas = image.copy()
    height, width = canvas.shape[:2]
    line = max(1, round(max(height, width) / 320))
    ranked = sorted(boxes, key=lambda box: -(box.score or 0.0))
    for box in reversed(ranked):
        colour = colours[box.category]
        _fill(canvas, outlines(box.segmentation, 0.5), colour)
        # pixel x covers [x, x + 1]: the frame is drawn on the outermost pixels inside the box
        x0, y0, x1, y1 = (round(value) for value in box.xyxy)
        cv2.rectangle(canvas, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), colour, line)
    return _labelled(canvas, ranked, colours)


def _fill(canvas: Pixels, shapes: Sequence[np.ndarray], colour: Colour) -> None:
    """Blend the inside of a mask's outlines, holes left out, and draw the outlines."""
    if not shapes:
        return
    # a pixel's centre, which OpenCV calls x, is x + 0.5 in continuous coordinates
    points = [np.rint((shape - 0.5) * 2**FRACTION).astype(np.int32) for shape in shapes]
    inside = np.zeros(canvas.shape[:2], dtype=np.uint8)
    cv2.fillPoly(inside, points, 1, cv2.LINE_8, FRACTION)
    where = inside.astype(bool)
    mixed = canvas[where] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY
    canvas[where] = np.rint(mixed).astype(np.uint8)
    cv2.polylines(canvas, points, True, colour, 1, cv2.LINE_AA, FRACTION)


def _labelled(canvas: Pixels, ranked: Sequence[Box], colours: Mapping[str, Colour]) -> Pixels:
    height, width = canvas.shape[:2]
    font = ImageFont.load_default(size=max(10, round(max(height, width) / 42)))
    picture = Image.fromarray(canvas)
    pen = ImageDraw.Draw(picture)
    taken: list[Frame] = []
    for box in ranked:
        text = box.category if box.score is None else f"{box.category} {box.score:.2f}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        pad = max(1, round((bottom - top) / 6))
        size = (right - left + 2 * pad, bottom - top + 2 * pad)
        spot = free_spot(box.xyxy, size, (width, height), taken)
        if spot is None:
            continue
        x, y = round(spot[0]), round(spot[1])
        colour = colours[box.category]
        pen.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill=colour)
        luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
        ink = (0, 0, 0) if luma > 110 else (255, 255, 255)
        pen.text((x + pad - left, y + pad - top), text, fill=ink, font=font)
    return np.asarray(picture)
