"""Pictures for the tests of the views: made ones everywhere, real photos where there are some."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pretrain.images import Image, read_image

KINDS = ["smooth", "noise", "photo"]


def smooth(height: int = 90, width: int = 121) -> Image:
    """Blobs of colour that reach from black to white."""
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 4)
    return cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX)


def noise(height: int = 64, width: int = 65) -> Image:
    """Independent pixels: any colour beside any other."""
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photos(data_root: Path, count: int) -> list[Image]:
    """Photos of the COCO sample, shrunk to 160 x 120 pixels."""
    paths = sorted((data_root / "coco2017_sample" / "val2017").glob("*.jpg"))[:count]
    if len(paths) < count:
        pytest.skip(f"fewer than {count} photos in {data_root / 'coco2017_sample' / 'val2017'}")
    return [cv2.resize(read_image(str(p)), (160, 120), interpolation=cv2.INTER_AREA) for p in paths]


def picture(kind: str, request: pytest.FixtureRequest) -> Image:
    """The picture of that kind; skips where there are no real photos."""
    if kind == "photo":
        return photos(request.getfixturevalue("data_root"), 1)[0]
    return {"smooth": smooth, "noise": noise}[kind]()
