"""Reading one image, with detectron2's conventions, and telling a broken one."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from moco_det.foundation.errors import InputError

EXIF_ORIENTATION = 274

# EXIF 2.3, tag 274: how the stored pixels have to be turned to stand upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Samples of more than eight bits: their conversion to RGB, detectron2's too, turns all above 255
# into white.
_WIDE = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def read_image(path: str, format: Literal["RGB", "BGR"] = "RGB") -> npt.NDArray[np.uint8]:
    """The pixels of an image file, uint8 of shape (height, width, 3), turned upright by its EXIF.

    Grayscale and palette images become three channels. Equal to detectron2's `read_image`.
    Raises InputError naming the file when it is missing, truncated or no image.
    """
    if format not in ("RGB", "BGR"):
        raise InputError(f"image format {format!r} is not known: use RGB or BGR")
    try:
        with Image.open(path) as stored:
            _refuse_wide(stored)
            image = _upright(stored).convert("RGB")
        pixels = np.array(image)
    except Exception as error:  # the decoders raise a dozen types, struct.error among them
        raise InputError(_reason(path, error)) from error
    return pixels if format == "RGB" else np.ascontiguousarray(pixels[:, :, ::-1])


def image_size(path: str) -> tuple[int, int]:
    """(height, width) from the header, after EXIF orientation; the pixels are not decoded."""
    try:
        with Image.open(path) as stored:
            width, height = stored.size
            turned = _orientation(stored) in (5, 6, 7, 8)
    except Exception as error:
        raise InputError(_reason(path, error)) from error
    return (width, height) if turned else (height, width)


def image_fault(path: str, height: int, width: int) -> str | None:
    """Why this image cannot be used, or None when it decodes whole and has the given size."""
    try:
        with Image.open(path) as stored:
            size = stored.size
            turned = _orientation(stored) in (5, 6, 7, 8)
            # a draft still reads the whole stream, so truncation is found, at a third of the cost
            stored.draft(None, (max(size[0] // 8, 1), max(size[1] // 8, 1)))
            stored.load()
            _refuse_wide(stored)
    except Exception as error:
        return _reason(path, error)
    found = size if turned else (size[1], size[0])
    if found != (height, width):
        return (
            f"{path} is {found[1]}x{found[0]} pixels, its annotation says {width}x{height}: "
            "mend the annotation or the image"
        )
    return None


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # a damaged EXIF block does not spoil the pixels
        return None


def _refuse_wide(image: Image.Image) -> None:
    if image.mode in _WIDE:
        raise ValueError("its samples have more than eight bits: store it with eight")


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image) or 0)
    return image if turn is None else image.transpose(turn)


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"image {path} does not exist: check the path"
    if isinstance(error, IsADirectoryError):
        return f"image {path} is a folder: name a file"
    text = " ".join(str(error).replace(str(path), "it").split()) or type(error).__name__
    return f"image {path} does not open ({text}): replace or remove it"
