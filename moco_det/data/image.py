"""Reading one image, with detectron2's conventions, and telling a broken one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from moco_det.foundation.atomic import replacing
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_IMAGE, open_regular, too_many_pixels

Image.MAX_IMAGE_PIXELS = None  # the limit is `too_many_pixels`

EXIF_ORIENTATION = 274
JPEG_QUALITY = 95

# Samples of more than eight bits: their conversion to RGB, detectron2's too, turns all above 255
# into white.
_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def read_image(path: str, format: Literal["RGB", "BGR"] = "RGB") -> npt.NDArray[np.uint8]:
    """The pixels of an image file, uint8 of shape (height, width, 3), turned upright by its EXIF.

    Grayscale and palette images become three channels. Equal to detectron2's `read_image`.
    Raises InputError naming the file when it is missing, truncated or no image.
    """
    with _opened(path) as stored:
        _refuse_wide(stored)
        if _orientation(stored) in range(2, 9):
            ImageOps.exif_transpose(stored, in_place=True)
        pixels = np.array(stored.convert("RGB"))
    return pixels if format == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])


def image_size(path: str) -> tuple[int, int]:
    """(height, width) from the header, after EXIF orientation; the pixels are not decoded."""
    with _opened(path) as stored:
        return _upright_size(stored)


def image_fault(path: str, height: int, width: int) -> str | None:
    """Why this image cannot be used, or None when it decodes whole and has the given size."""
    try:
        with _opened(path) as stored:
            found = _upright_size(stored)
            # a draft still reads the whole stream, so truncation is found, at a third of the cost
            stored.draft(None, (max(stored.width // 8, 1), max(stored.height // 8, 1)))
            stored.load()
            _refuse_wide(stored)
    except InputError as error:
        return str(error)
    if found != (height, width):
        return (
            f"{path} is {found[1]}x{found[0]} pixels, its annotation says {width}x{height}: "
            "fix the annotation or the image"
        )
    return None


def write_jpeg(path: Path, bgr: npt.NDArray[np.uint8]) -> None:
    """Write (height, width, 3) pixels in OpenCV's channel order."""
    done, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not done:
        raise RuntimeError(f"OpenCV's JPEG encoder refused {path}")
    with replacing(path) as file:
        file.write(content.tobytes())


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """The image; whatever fails while it is read is an InputError of one line."""
    try:
        with open_regular(path, MOST_IMAGE) as file, Image.open(file) as stored:
            fault = too_many_pixels(*stored.size)
            if fault is not None:
                raise ValueError(fault)
            yield stored
    except FileNotFoundError as error:
        raise InputError(f"image {path} does not exist: check the path") from error
    except InputError:
        raise
    except Exception as error:  # the decoders raise a dozen types, struct.error among them
        text = " ".join(str(error).replace(str(path), "it").split()) or type(error).__name__
        raise InputError(f"image {path} does not open ({text}): replace or remove it") from error


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(EXIF_ORIENTATION) or 0
    except Exception:  # a damaged EXIF block does not spoil the pixels
        return 0


def _upright_size(image: Image.Image) -> tuple[int, int]:
    size = (image.width, image.height)
    return size if _orientation(image) in (5, 6, 7, 8) else size[::-1]


def _refuse_wide(image: Image.Image) -> None:
    if image.mode in _WIDE:
        raise ValueError("its samples have more than eight bits: store it with eight")
