"""Painting one procedural scene: background, clutter and objects, with each object's visible mask.

Colours never carry the class: every object, distractor and background draws its own. While it is
painted an image is three float planes (3, H, W), RGB 0..1, in which numpy broadcasts fastest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from moco_det.data.scene_shapes import CLASSES, FORMS, SURFACES, Plane

# Radii of objects as a share of the image side: a scale change of 3.2.
RADIUS = (0.08, 0.26)
# An object that would be seen less than this is not painted, nor one painted over it.
LEAST_VISIBLE = 0.4
LEAST_PIXELS = 40
TRIES = 12
# Close-ups: the canvas, the radii of the object on it in pixels, how far from its middle the object
# may lie (share of the canvas), and the half side of the picture in radii.
CLOSE_UP_CANVAS = 64
CLOSE_UP_RADIUS = (9.0, 23.0)
CLOSE_UP_OFFSET = 0.05
CLOSE_UP_REACH = 1.4


class Scene(NamedTuple):
    """image (size, size, 3) uint8 RGB; owner (size, size) int16: 1 + index of the object seen at a
    pixel, 0 for none; labels: class name of each object; truncated: cut by the image's edge."""

    image: npt.NDArray[np.uint8]
    owner: npt.NDArray[np.int16]
    labels: tuple[str, ...]
    truncated: tuple[bool, ...]


class _Patch(NamedTuple):
    """Something to paste, cut to the image: where it lies in a plane, what it looks like, and the
    signed distance to its edge in pixels. `whole`: its pixels before it was cut."""

    place: tuple[Any, ...]
    alpha: Plane
    colour: Plane
    distance: Plane
    whole: int

    @property
    def solid(self) -> npt.NDArray[np.bool_]:
        return self.alpha > 0.5


class _Placed(NamedTuple):
    """An object in a scene."""

    label: str
    x: float
    y: float
    radius: float
    patch: _Patch


def paint_scene(
    rng: np.random.Generator, size: int, classes: Sequence[str], objects: tuple[int, int]
) -> Scene:
    """One scene of objects[0]..objects[1] objects; the generator's state decides everything."""
    picture = _Picture(rng, size)
    owner = np.zeros((size, size), np.int16)
    placed: list[_Placed] = []
    for _ in range(rng.integers(0, 4)):
        picture.paste(picture.distractor())
    for _ in range(rng.integers(objects[0], objects[1] + 1)):
        label = _one_of(rng, classes)
        for _attempt in range(TRIES):
            radius = size * float(np.exp(rng.uniform(*np.log(RADIUS))))
            x, y = _place(rng, size, radius, placed)
            patch = picture.piece(*CLASSES[label], radius, x, y)
            if _leaves_enough(owner, patch, patch.whole, placed):
                placed.append(_Placed(label, x, y, radius, patch))
                picture.paste(patch)
                owner[patch.place][patch.solid] = len(placed)
                break
    if rng.random() < 0.35:  # something in front
        blob = picture.distractor(small=True)
        if _leaves_enough(owner, blob, int(blob.solid.sum()), placed):
            picture.paste(blob)
            owner[blob.place][blob.solid] = 0
    truncated = tuple(bool(one.patch.solid.sum() < one.patch.whole) for one in placed)
    return Scene(picture.developed(), owner, tuple(one.label for one in placed), truncated)


def paint_close_up(
    rng: np.random.Generator, size: int, classes: Sequence[str]
) -> npt.NDArray[np.uint8]:
    """One object in the middle that fills the picture, clutter behind it and perhaps in front.

    (size, size, 3) uint8 RGB. Background, clutter, light, lens and grain are the scenes'; the
    object's class is drawn from `classes` and not kept.
    """
    side = CLOSE_UP_CANVAS
    picture = _Picture(rng, side)
    for _ in range(rng.integers(0, 3)):
        picture.paste(picture.distractor())
    label = _one_of(rng, classes)
    radius = float(np.exp(rng.uniform(*np.log(CLOSE_UP_RADIUS))))
    x, y = (float(c) for c in side * (0.5 + rng.uniform(-CLOSE_UP_OFFSET, CLOSE_UP_OFFSET, 2)))
    picture.paste(picture.piece(*CLASSES[label], radius, x, y))
    if rng.random() < 0.35:
        picture.paste(picture.distractor(small=True))
    reach = min(side // 2, round(CLOSE_UP_REACH * radius))
    middle = slice(side // 2 - reach, side // 2 + reach)
    close_up = picture.developed()[middle, middle]
    return cv2.resize(close_up, (size, size), interpolation=cv2.INTER_AREA).astype(np.uint8)


class _Picture:
    """A square picture while it is painted: `canvas` (3, size, size), and where its light is."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.canvas = _background(rng, size)
        angle = rng.uniform(0, 2 * np.pi)
        self.light = float(np.cos(angle)), float(np.sin(angle))

    def distractor(self, small: bool = False) -> _Patch:
        """Clutter that is no object: a known form without a surface, or a blob with one."""
        rng = self.rng
        radius = self.size * float(rng.uniform(0.05, 0.1 if small else 0.2))
        x, y = (float(c) for c in rng.uniform(0, self.size, 2))
        if rng.random() < 0.35:
            return self.piece(_one_of(rng, FORMS), "plain", radius, x, y)
        return self.piece("", _one_of(rng, SURFACES), radius, x, y)

    def piece(self, form: str, surface: str, radius: float, x: float, y: float) -> _Patch:
        """A form, or a blob where that is empty, turned and stretched, with a surface."""
        rng, light = self.rng, self.light
        reach = int(np.ceil(radius * 1.2)) + 6  # room for the shadow
        side = 2 * reach + 1
        column, row = int(np.floor(x)) - reach, int(np.floor(y)) - reach
        gx, gy = _grid(side)
        # pixel centres lie at half coordinates
        dx = (gx + np.float32(column + reach + 0.5 - x)) / np.float32(radius)
        dy = (gy + np.float32(row + reach + 0.5 - y)) / np.float32(radius)
        u, v = _turned(dx, dy, float(rng.uniform(0, 2 * np.pi)))
        stretch = np.float32(rng.uniform(0.87, 1.15))
        u, v = u * stretch, v / stretch
        if form:
            distance = FORMS[form](u, v) * np.float32(radius)
        else:
            angle, turn = np.arctan2(v, u), rng.uniform(0, 6.28, 2)
            edge = 0.75 + 0.16 * np.cos(2 * angle + turn[0]) + 0.12 * np.cos(3 * angle + turn[1])
            distance = ((np.sqrt(u * u + v * v) - edge) * radius).astype(np.float32)
        alpha = np.clip(np.float32(0.5) - distance, 0, 1)
        dark, bright = _pair(rng)
        share = np.clip(np.float32(0.5) + SURFACES[surface](u, v) * np.float32(radius), 0, 1)
        colour = dark[:, None, None] + share * (bright - dark)[:, None, None]
        # lit from the side, with a darker rim
        shade = 1 - np.float32(0.22) * (light[0] * dx + light[1] * dy)
        shade = shade * np.clip(np.float32(0.72) - distance * np.float32(0.16), 0.72, 1)
        colour = np.clip(colour * shade, 0, 1)
        top, left = max(row, 0), max(column, 0)
        bottom = max(min(row + side, self.size), top)
        right = max(min(column + side, self.size), left)
        cut = np.s_[..., top - row : bottom - row, left - column : right - column]
        whole, place = int((alpha > 0.5).sum()), np.s_[..., top:bottom, left:right]
        return _Patch(place, alpha[cut], colour[cut], distance[cut], whole)

    def paste(self, patch: _Patch) -> None:
        """Paint the patch over what is there, its shadow under it."""
        area = self.canvas[patch.place]
        if area.size == 0:
            return
        # the shadow is the same distance field, soft and moved away from the light
        move = np.array([[1, 0, 3 * self.light[0]], [0, 1, 3 * self.light[1]]], np.float32)
        shadow = np.clip(np.float32(0.5) - patch.distance / np.float32(5), 0, 1)
        shadow = cv2.warpAffine(shadow, move, (shadow.shape[1], shadow.shape[0]))
        area *= 1 - np.float32(0.4) * shadow
        area += patch.alpha * (patch.colour - area)

    def developed(self) -> npt.NDArray[np.uint8]:
        """Light that falls off to one side, a soft or sharp lens, sensor noise; to 8 bit."""
        rng, size, canvas = self.rng, self.size, self.canvas
        gx, gy = _grid(size)
        angle = rng.uniform(0, 2 * np.pi)
        x, y = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        slope = (x * gx + y * gy) * np.float32(rng.uniform(0, 0.6) / size)
        canvas = canvas * (np.float32(rng.uniform(0.85, 1.1)) * (1 + slope))
        if rng.random() < 0.3:
            sigma = float(rng.uniform(0.4, 0.9))
            canvas = np.stack([cv2.GaussianBlur(plane, (0, 0), sigma) for plane in canvas])
        grain = rng.standard_normal((size, size), dtype=np.float32)
        noise = grain * np.float32(rng.uniform(1, 5)) + np.float32(0.5)
        image = np.empty((size, size, 3), np.uint8)
        image.transpose(2, 0, 1)[:] = np.clip(canvas * np.float32(255) + noise, 0, 255)
        return image


def _background(rng: np.random.Generator, size: int) -> Plane:
    """Two colours mixed by clouds and a faint pattern, with lines across. (3, size, size)."""
    clouds = np.zeros((size, size), np.float32)
    for cells, weight in ((3, 0.5), (9, 0.3), (30, 0.22)):
        grid = rng.random((cells, cells), dtype=np.float32)
        smooth = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        clouds += np.float32(weight) * smooth.astype(np.float32)
    if rng.random() < 0.6:
        scale = np.float32(size * rng.uniform(0.08, 0.3))
        u, v = _turned(*_grid(size), float(rng.uniform(0, 2 * np.pi)))
        name = _one_of(rng, ("stripes", "checks", "dots", "zigzag"))
        pattern = SURFACES[name](u / scale, v / scale) * scale
        clouds += np.float32(rng.uniform(0.1, 0.3)) * np.clip(pattern, -0.5, 0.5)
    first, second = _colour(rng)[:, None, None], _colour(rng)[:, None, None]
    canvas = first + np.clip(clouds, 0, 1) * (second - first)
    # OpenCV draws smooth edges in 8 bit only
    drawn = np.ascontiguousarray((canvas * 255).astype(np.uint8).transpose(1, 2, 0))
    for _ in range(rng.integers(0, 7)):
        x0, y0, x1, y1 = (int(c) for c in rng.integers(-size // 8, size + size // 8, 4))
        colour = [float(c) * 255 for c in _colour(rng)]
        cv2.line(drawn, (x0, y0), (x1, y1), colour, int(rng.integers(1, 3)), cv2.LINE_AA)
    return np.multiply(drawn.transpose(2, 0, 1), np.float32(1 / 255), order="C")


def _leaves_enough(
    owner: npt.NDArray[np.int16], patch: _Patch, whole: int, placed: Sequence[_Placed]
) -> bool:
    """Whether the piece itself, and every object that it covers in part, stays well visible."""
    solid, count = patch.solid, len(placed) + 1
    if solid.sum() < max(LEAST_VISIBLE * whole, LEAST_PIXELS):
        return False
    lost = np.bincount(owner[patch.place][solid], minlength=count)[1:]
    left = np.bincount(owner.ravel(), minlength=count)[1:] - lost
    least = [max(LEAST_VISIBLE * one.patch.whole, LEAST_PIXELS) for one in placed]
    return not lost.any() or bool((left >= least).all())


def _place(
    rng: np.random.Generator, size: int, radius: float, placed: Sequence[_Placed]
) -> tuple[float, float]:
    """Anywhere, or close to an object that is there already so that one covers the other."""
    if placed and rng.random() < 0.35:
        near = placed[int(rng.integers(len(placed)))]
        angle, gap = rng.uniform(0, 2 * np.pi), (radius + near.radius) * rng.uniform(0.55, 0.95)
        return float(near.x + gap * np.cos(angle)), float(near.y + gap * np.sin(angle))
    x, y = rng.uniform(0.7 * radius, size - 0.7 * radius, 2)
    return float(x), float(y)


def _one_of(rng: np.random.Generator, names: Iterable[str]) -> str:
    known = list(names)
    return known[int(rng.integers(len(known)))]


def _colour(rng: np.random.Generator) -> Plane:
    """Any hue, (3,) RGB 0..1."""
    hue, saturation, value = rng.random(), rng.uniform(0.1, 0.75), rng.uniform(0.25, 0.95)
    # HSV to RGB: each channel is a trapezium over the hue
    wheel = [min(max(abs((6 * hue + shift) % 6 - 3) - 1, 0.0), 1.0) for shift in (0, 4, 2)]
    return np.array([value * (1 - saturation + saturation * w) for w in wheel], np.float32)


def _pair(rng: np.random.Generator) -> tuple[Plane, Plane]:
    """Two colours of any hue that differ in brightness, in either order."""
    dark = _colour(rng)
    bright = _colour(rng)
    dark *= np.float32(rng.uniform(0.15, 0.45)) / max(dark.max(), np.float32(0.01))
    bright *= np.float32(rng.uniform(0.75, 1.0)) / max(bright.max(), np.float32(0.01))
    return (dark, bright) if rng.random() < 0.5 else (bright, dark)


def _turned(x: Plane, y: Plane, angle: float) -> tuple[Plane, Plane]:
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


@lru_cache(maxsize=256)
def _grid(side: int) -> tuple[Plane, Plane]:
    """x and y of a square's pixels counted from its middle pixel; read-only."""
    line = np.arange(side, dtype=np.float32) - np.float32(side // 2)
    x, y = np.meshgrid(line, line)
    x.flags.writeable = y.flags.writeable = False
    return x, y
