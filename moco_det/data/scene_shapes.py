"""The forms and surfaces of which the procedural scenes are made.

Both are functions of object coordinates u, v (the object's radius is 1, its centre 0). A form gives
the signed distance to its edge, negative inside; a surface gives a wave whose sign is the pattern
and whose slope is about 1 per object unit, so that one pixel of softening is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Plane = npt.NDArray[np.float32]
Field = Callable[[Plane, Plane], Plane]

PI = np.float32(np.pi)


def disk(u: Plane, v: Plane) -> Plane:
    return np.sqrt(u * u + v * v) - np.float32(0.95)


def square(u: Plane, v: Plane) -> Plane:
    return np.maximum(np.abs(u), np.abs(v)) - np.float32(0.82)


def triangle(u: Plane, v: Plane) -> Plane:
    slope = np.float32(0.8660254) * np.abs(u) + np.float32(0.5) * v
    return np.maximum(slope, -v) - np.float32(0.56)


def cross(u: Plane, v: Plane) -> Plane:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(a, b) - np.float32(0.98), np.minimum(a, b) - np.float32(0.36))


def ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.sqrt(u * u + v * v) - np.float32(0.7)) - np.float32(0.3)


def star(u: Plane, v: Plane) -> Plane:
    """Five points: one edge, from an outer to an inner corner, folded ten times."""
    radius = np.sqrt(u * u + v * v)
    sector = np.abs(np.mod(np.arctan2(v, u), 2 * PI / 5) - PI / 5)  # 0 at inner, pi/5 at outer
    x, y = radius * np.cos(sector), radius * np.sin(sector)
    outer = (1.1 * np.cos(np.pi / 5), 1.1 * np.sin(np.pi / 5))
    edge = np.array([outer[0] - 0.52, outer[1]])
    normal = np.array([edge[1], -edge[0]]) / np.hypot(*edge)
    return np.float32(normal[0]) * (x - np.float32(0.52)) + np.float32(normal[1]) * y


def stripes(u: Plane, v: Plane) -> Plane:
    return _wave(u, 1.6)


def checks(u: Plane, v: Plane) -> Plane:
    return _wave(u + np.float32(0.16), 1.3) * np.sign(np.sin(2.6 * PI * (v + np.float32(0.16))))


def dots(u: Plane, v: Plane) -> Plane:
    grid = np.cos(3.4 * PI * u) + np.cos(3.4 * PI * v)
    return (grid - np.float32(0.55)) / np.float32(3.4 * np.pi)


def rings(u: Plane, v: Plane) -> Plane:
    return _wave(np.sqrt(u * u + v * v) + np.float32(0.1), 1.9)


def spokes(u: Plane, v: Plane) -> Plane:
    radius = np.sqrt(u * u + v * v)
    return np.sin(10 * np.arctan2(v, u)) * radius / np.float32(10)


def zigzag(u: Plane, v: Plane) -> Plane:
    fold = np.abs(np.mod(np.float32(1.9) * u, np.float32(1)) - np.float32(0.5))
    return _wave(v + np.float32(0.55) * fold, 1.9)


def plain(u: Plane, v: Plane) -> Plane:
    return np.ones_like(u)


def _wave(x: Plane, per_unit: float) -> Plane:
    phase = np.float32(2 * np.pi * per_unit)
    return np.sin(phase * x) / phase


FORMS: dict[str, Field] = {
    form.__name__: form for form in (disk, square, triangle, cross, ring, star)
}
SURFACES: dict[str, Field] = {
    surface.__name__: surface for surface in (stripes, checks, dots, rings, spokes, zigzag, plain)
}

# A class is a form with a surface. Forms and surfaces recur, so neither tells the class alone.
CLASSES: dict[str, tuple[str, str]] = {
    "checked_cross": ("cross", "checks"),
    "checked_square": ("square", "checks"),
    "dotted_disk": ("disk", "dots"),
    "dotted_triangle": ("triangle", "dots"),
    "ringed_star": ("star", "rings"),
    "spoked_ring": ("ring", "spokes"),
    "striped_disk": ("disk", "stripes"),
    "zigzag_square": ("square", "zigzag"),
}
