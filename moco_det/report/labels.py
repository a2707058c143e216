"""Labels in pictures and charts: how wide they are, and where they go without meeting others."""

from __future__ import annotations

Frame = tuple[float, float, float, float]  # xyxy


def text_width(text: str, size: float) -> float:
    """About the width of a text in the widest of the usual fonts: the page picks the font."""
    wide = sum(character.isupper() for character in text)
    thin = sum(character in " .,:;il|" for character in text)
    return size * (0.72 * wide + 0.34 * thin + 0.62 * (len(text) - wide - thin))


def shortened(text: str, size: float, room: float) -> str:
    """The text, or as much of its beginning as the room holds with an ellipsis after it."""
    if text_width(text, size) <= room:
        return text
    end = len(text)
    while end > 1 and text_width(text[:end], size) + size > room:
        end -= 1
    return text[:end] + "…"


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
