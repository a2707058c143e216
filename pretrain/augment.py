"""Random views of an image, fast: OpenCV on uint8 RGB, one decoded image for all its views.

The steps, their probabilities and ranges are those of torchvision's transforms in the MoCo
recipes; a view depends on (seed, pass over the data, image index) and on nothing else.
Letters: H, W height and width of the source, S side of the square view, V views.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Image = NDArray[Any]  # uint8, RGB

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)

# Luma weights of ITU-R 601, as PIL's and OpenCV's grayscale.
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Recipe:
    """What happens to a view after its crop; jitter is (brightness, contrast, saturation, hue)."""

    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_p: float = 0.0
    gray_p: float = 0.0
    gray_first: bool = False
    blur_p: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip_p: float = 0.5
    min_scale: float = 0.2
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


# MoCo v1: Section 3.3 and the released code's order. MoCo v2: Section 3 and the released code.
RECIPES: dict[str, Recipe] = {
    "moco_v1": Recipe(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, gray_p=0.2, gray_first=True),
    "moco_v2": Recipe(jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, gray_p=0.2, blur_p=0.5),
    "crop_flip": Recipe(),
}


def recipe(name: str, *, min_scale: float) -> Recipe:
    """The recipe of that name with the smallest crop area `min_scale` (share of the image)."""
    return replace(RECIPES[name], min_scale=min_scale)


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one image in one pass over the data."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, index))))


def views(
    image: Image, recipe: Recipe, *, size: int, count: int, rng: np.random.Generator
) -> Image:
    """`count` random views [V, S, S, 3] of an RGB image [H, W, 3], uint8."""
    out = np.empty((count, size, size, 3), dtype=np.uint8)
    for view in out:
        # One draw for all the numbers a view may need: single draws would cost more than the
        # pixels of a small view.
        u = rng.random(33).tolist()
        crop = random_crop(image.shape[0], image.shape[1], recipe, u[:22])
        pixels = _resize(image, crop, size)
        pixels = _recolour(pixels, recipe, u[22:])
        if u[32] < recipe.flip_p:
            cv2.flip(pixels, 1, dst=view)
        else:
            view[:] = pixels
    return out


def random_crop(
    height: int, width: int, recipe: Recipe, u: list[float]
) -> tuple[int, int, int, int]:
    """Top, left, height, width of a crop, from 22 uniform numbers: ten tries and a position.

    Area uniform in [min_scale, 1] of the image, aspect ratio log-uniform; after ten tries that
    do not fit, the largest central crop of allowed ratio (torchvision's RandomResizedCrop).
    """
    low, high = recipe.ratio
    log_low, log_high = math.log(low), math.log(high)
    for attempt in range(10):
        area = height * width * (recipe.min_scale + (1 - recipe.min_scale) * u[2 * attempt])
        ratio = math.exp(log_low + (log_high - log_low) * u[2 * attempt + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(u[20] * (height - h + 1)), int(u[21] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < low:
        h = max(1, min(height, round(width / low)))
    elif width / height > high:
        w = max(1, min(width, round(height * high)))
    return (height - h) // 2, (width - w) // 2, h, w


def _resize(image: Image, crop: tuple[int, int, int, int], size: int) -> Image:
    top, left, h, w = crop
    # Shrinking by bilinear sampling would alias; area averaging is close to PIL's filter.
    shrinks = h > size or w > size
    return cv2.resize(
        image[top : top + h, left : left + w],
        (size, size),
        interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR,
    )


def _recolour(pixels: Image, recipe: Recipe, u: list[float]) -> Image:
    """Colour jitter, grayscale and blur by the uniform numbers u[0:10]."""
    if recipe.gray_first and u[0] < recipe.gray_p:
        pixels = grayscale(pixels)
    if u[1] < recipe.jitter_p:
        pixels = _jitter(pixels, recipe.jitter, u[2:6], int(u[6] * 24))
    if not recipe.gray_first and u[0] < recipe.gray_p:
        pixels = grayscale(pixels)
    if u[7] < recipe.blur_p:
        low, high = recipe.blur_sigma
        pixels = blur(pixels, low + (high - low) * u[8])
    return pixels


def _jitter(
    pixels: Image, strength: tuple[float, float, float, float], u: list[float], order: int
) -> Image:
    """Brightness, contrast, saturation and hue in one of their 24 orders (ColorJitter)."""
    for step in ORDERS[order]:
        amount = strength[step] * (2 * u[step] - 1)
        if step == 0:
            pixels = brightness(pixels, 1 + amount)
        elif step == 1:
            pixels = contrast(pixels, 1 + amount)
        elif step == 2:
            pixels = saturation(pixels, 1 + amount)
        else:
            pixels = hue(pixels, amount)
    return pixels


ORDERS = list(itertools.permutations(range(4)))


def brightness(pixels: Image, factor: float) -> Image:
    """Every value times `factor`, saturated."""
    return cv2.convertScaleAbs(pixels, alpha=factor)


def contrast(pixels: Image, factor: float) -> Image:
    """Every value's distance from the image's mean gray times `factor`, saturated."""
    mean = float(np.dot(cv2.mean(pixels)[:3], LUMA))
    return cv2.addWeighted(pixels, factor, pixels, 0.0, round(mean) * (1 - factor))


def saturation(pixels: Image, factor: float) -> Image:
    """Every pixel's distance from its own gray times `factor`, saturated."""
    gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    return cv2.addWeighted(pixels, factor, cv2.merge([gray, gray, gray]), 1 - factor, 0.0)


def hue(pixels: Image, shift: float) -> Image:
    """The hue turned by `shift` of a full circle (-0.5..0.5)."""
    steps = int(shift * 255)  # hue in 256 steps, as in PIL
    if steps == 0:
        return pixels
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(steps % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def grayscale(pixels: Image) -> Image:
    """The luma in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def blur(pixels: Image, sigma: float) -> Image:
    """Gaussian blur with `sigma` in pixels."""
    return cv2.GaussianBlur(pixels, (0, 0), sigma)


def centre_view(image: Image, size: int) -> Image:
    """The view without chance: the shorter side to S * 8/7, the centre S x S; uint8 [S, S, 3]."""
    height, width = image.shape[:2]
    scale = round(size * 8 / 7) / min(height, width)
    w, h = max(size, round(width * scale)), max(size, round(height * scale))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (w, h), interpolation=kind)
    top, left = (h - size) // 2, (w - size) // 2
    return resized[top : top + size, left : left + size]


def normalise(batch: Tensor) -> Tensor:
    """uint8 images [N, S, S, 3] to float32 [N, 3, S, S] in channels-last memory, on their device.

    One multiply and add: (x / 255 - mean) / std.
    """
    std = torch.tensor(IMAGE_STD, device=batch.device)
    scale = 1.0 / (255.0 * std)
    shift = -torch.tensor(IMAGE_MEAN, device=batch.device) / std
    # Channels are already innermost: the permuted view is what channels_last means.
    return torch.addcmul(shift, batch.to(torch.float32), scale).permute(0, 3, 1, 2)
