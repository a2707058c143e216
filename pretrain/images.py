"""Image files to pixels: RGB, uint8, [H, W, 3], upright; what can't be read says why.

Grayscale becomes three equal channels, palettes and CMYK become RGB, 16-bit samples keep their
high byte, an alpha channel is dropped (the colours stored below it stay), of an animation the
first frame is taken, and the orientation that EXIF gives is applied.
"""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PIL

from moco_det.foundation.reading import MOST_IMAGE, read_regular, too_many_pixels
from pretrain.jpeg import is_damaged

Image = NDArray[Any]  # uint8, RGB

PIL.MAX_IMAGE_PIXELS = None  # the limit is `too_many_pixels`

# The fractions of its size at which a JPEG can be decoded for less work (DCT scaling).
REDUCED = {
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class CorruptImage(Exception):
    """A file that does not open as an image; the message says why."""


def read_image(path: str, *, shorter_side: int = 0, damaged: list[str] | None = None) -> Image:
    """`decode` of a file's content; raises CorruptImage where it can't be opened, too.

    To the list `damaged`, where there is one, the path of a JPEG that is damaged inside is added.
    """
    try:
        data = read_regular(path, MOST_IMAGE)
    except OSError as error:
        raise CorruptImage(error.strerror or str(error)) from error
    image = decode(data, shorter_side=shorter_side)
    if damaged is not None and is_damaged(data):
        damaged.append(path)
    return image


def decode(data: bytes, *, shorter_side: int = 0) -> Image:
    """An encoded image as RGB uint8 [H, W, 3], upright; raises CorruptImage.

    With `shorter_side` above 0 a larger image is shrunk to it.
    """
    if not data:
        raise CorruptImage("empty file")
    jpeg = data.startswith(b"\xff\xd8")
    width, height = (_jpeg_size(data) if jpeg else None) or _size(data)
    fault = too_many_pixels(width, height)
    if fault is not None:
        raise CorruptImage(fault)
    shrink = shorter_side / min(width, height) if shorter_side > 0 else 1.0
    if shrink >= 1:
        return _imdecode(data, cv2.IMREAD_COLOR_RGB)
    # Only for a JPEG: other formats would be decoded whole and then thinned out.
    fraction = max((part for part in REDUCED if part * shrink <= 1), default=1) if jpeg else 1
    if fraction == 1:
        image = _imdecode(data, cv2.IMREAD_COLOR_RGB)
    else:
        image = cv2.cvtColor(_imdecode(data, REDUCED[fraction]), cv2.COLOR_BGR2RGB)
    if image.shape[:2] != (-(-height // fraction), -(-width // fraction)):
        width, height = height, width  # EXIF has turned it
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _imdecode(data: bytes, flags: int) -> Image:
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    except cv2.error as error:
        raise CorruptImage("not an image that OpenCV can decode") from error
    if image is None:
        raise CorruptImage("not an image that OpenCV can decode")
    return image


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by a JPEG's headers, None where those are odd but whole.

    Raises CorruptImage where the end marker is missing: OpenCV may fill the rest with gray.
    """
    size, at = None, 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker == 0xDA:  # start of a scan; the end marker comes after the last one
            if data.rfind(b"\xff\xd9", at) < 0:
                raise CorruptImage("the JPEG is cut short")
            break
        # The frame headers are C0..CF, but for the tables C4 and CC and the extension C8.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            size = int.from_bytes(width, "big"), int.from_bytes(height, "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if at + 4 > len(data):
        raise CorruptImage("the JPEG is cut short")
    return size if size and min(size) > 0 else None


def _size(data: bytes) -> tuple[int, int]:
    """Width and height by the header of any other format."""
    try:
        with PIL.open(io.BytesIO(data)) as header:
            return header.size
    except Exception as error:  # a damaged header can raise anything in Pillow
        raise CorruptImage("not an image that Pillow can identify") from error
