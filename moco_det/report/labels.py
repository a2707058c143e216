"""Where the label of a box goes, so that labels stay inside the picture and off each other."""

from __future__ import annotations

Frame = tuple[float, float, float, float]  # xyxy


def free_spot(
    frame: Frame, size: tuple[float, float], canvas: tuple[float, float], taken: list[Frame]
) -> tuple[float, float] | None:
    """The upper left corner of a label of this (width, height): above the box, inside it at the
    top, inside at the bottom or below; None where none is free. A spot that is given is taken."""
    long, tall = size
    width, height = canvas
    x0, y0, _, y1 = frame
    x = min(max(x0, 0.0), max(width - long, 0.0))
    for y in (y0 - tall, y0, y1 - tall, y1):
        spot = (x, y, x + long, y + tall)
        inside = y >= 0 and y + tall <= height
        if inside and not any(_overlap(spot, other) for other in taken):
            taken.append(spot)
            return x, y
    return None


def _overlap(a: Frame, b: Frame) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
