"""Random views of an image, fast: uint8 RGB throughout, one decoded image for all its views.

The steps, their probabilities and ranges are those of torchvision's transforms in the MoCo
recipes; a view depends on (seed, pass over the data, image index) and on nothing else.
Letters: H, W height and width of the source, S side of the square view, V views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from moco_det.foundation.declared import at_least, one_of, within
from pretrain import colour
from pretrain.images import Image

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


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
    # As the released CIFAR-10 demo has it: two pixels of blur are a tenth of a small view.
    "moco_v2_no_blur": Recipe(jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, gray_p=0.2),
    "crop_flip": Recipe(),
}


@dataclass(frozen=True)
class AugmentArgs:
    """AUGMENT.*: the views of an image."""

    RECIPE: str = one_of(RECIPES, "moco_v1")
    SIZE: int = at_least(32, 224)  # side of a view
    MIN_SCALE: float = within(1e-3, 1, 0.2)  # smallest share of the image that a crop covers


def recipe(name: str, *, min_scale: float) -> Recipe:
    """The recipe of that name with the smallest crop area `min_scale` (share of the image)."""
    return replace(RECIPES[name], min_scale=min_scale)


class ViewParameters(NamedTuple):
    """What chance decides about one view; `crop` is top, left, height, width in pixels."""

    crop: tuple[int, int, int, int]
    flip: bool
    gray: bool
    factors: tuple[float, float, float] | None  # brightness, contrast, saturation; None: no jitter
    hue: float  # share of a full circle
    order: int  # of the four steps of the jitter, in colour.ORDERS
    sigma: float  # of the blur, 0 is none


def generator(*seed: int, key: int | None = None) -> np.random.Generator:
    """Random numbers of a seed of several parts; streams of other keys are independent of them.

    Those of a view are of (SEED, pass over the data, image index).
    """
    spawn_key = () if key is None else (key,)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=spawn_key)))


def views(
    image: Image, recipe: Recipe, *, size: int, count: int, rng: np.random.Generator
) -> Image:
    """`count` random views [V, S, S, 3] of an RGB image [H, W, 3], uint8."""
    out = np.empty((count, size, size, 3), dtype=np.uint8)
    drawn = draw_views(image.shape[0], image.shape[1], recipe, count=count, rng=rng)
    for view, chosen in zip(out, drawn, strict=True):
        top, left, height, width = chosen.crop
        pixels = resize(image[top : top + height, left : left + width], size, size)
        pixels = _recolour(pixels, recipe, chosen)
        if pixels.ndim == 2:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
        if chosen.flip:
            cv2.flip(pixels, 1, dst=view)
        else:
            view[:] = pixels
    return out


def draw_views(
    height: int, width: int, recipe: Recipe, *, count: int, rng: np.random.Generator
) -> list[ViewParameters]:
    """The parameters of `count` views of an image of H x W pixels."""
    drawn = []
    # One draw for all the numbers that may be needed: single draws would cost more than the
    # pixels of a small view.
    for u in rng.random((count, 32)).tolist():
        factors, hue, order, sigma = None, 0.0, 0, 0.0
        if u[23] < recipe.jitter_p:
            brightness, contrast, saturation, hue = (
                strength * (2 * x - 1) for strength, x in zip(recipe.jitter, u[24:28], strict=True)
            )
            factors, order = (1 + brightness, 1 + contrast, 1 + saturation), int(u[28] * 24)
        if u[29] < recipe.blur_p:
            low, high = recipe.blur_sigma
            sigma = low + (high - low) * u[30]
        crop = random_crop(height, width, recipe, u[:22])
        flip, gray = u[31] < recipe.flip_p, u[22] < recipe.gray_p
        drawn.append(ViewParameters(crop, flip, gray, factors, hue, order, sigma))
    return drawn


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


def resize(image: Image, height: int, width: int) -> Image:
    """The image [H, W, 3] at another size, bilinear, antialiased where it shrinks.

    PIL's filter, to a rounding: torch has it vectorised for uint8 with channels innermost.
    OpenCV's area average is slower and differs by 0.7 levels on photos, its bilinear one aliases.
    """
    # The axis of length one is made before the axes are permuted: torch must see channels_last.
    pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _recolour(pixels: Image, recipe: Recipe, chosen: ViewParameters) -> Image:
    """Colour jitter, grayscale and blur; gray comes back as [S, S]."""
    if chosen.gray and recipe.gray_first:
        pixels = colour.grayscale(pixels)
    if chosen.factors is not None:
        order = colour.ORDERS[chosen.order]
        pixels = colour.jitter(pixels, chosen.factors, chosen.hue, order)
    if chosen.gray:
        pixels = colour.grayscale(pixels)
    if chosen.sigma:
        pixels = colour.blur(pixels, chosen.sigma)
    return pixels


def centre_view(image: Image, size: int) -> Image:
    """The view without chance: the shorter side to S * 8/7, the centre S x S; uint8 [S, S, 3]."""
    height, width = image.shape[:2]
    scale = round(size * 8 / 7) / min(height, width)
    w, h = max(size, round(width * scale)), max(size, round(height * scale))
    top, left = (h - size) // 2, (w - size) // 2
    return resize(image, h, w)[top : top + size, left : left + size]


def normalise(batch: Tensor) -> Tensor:
    """uint8 images [N, H, W, 3] to float32 [N, 3, H, W] in channels-last memory, on their device.

    (x / 255 - mean) / std as one multiply and add.
    """
    count, height, width, _ = batch.shape
    scale, shift = _scale_and_shift(width, batch.device)
    rows = batch.reshape(count, height, width * 3)
    if batch.device.type == "cpu":
        out = torch.empty(rows.shape)
        # Few images at a time: the float copy then stays in the cache.
        images = max(1, 2**18 // (height * width * 3))
        for source, target in zip(rows.split(images), out.split(images), strict=True):
            torch.addcmul(shift, source.to(torch.float32), scale, out=target)
    else:
        out = torch.addcmul(shift, rows, scale)
    # Channels are innermost already: the permuted view is what channels_last means.
    return out.view(count, height, width, 3).permute(0, 3, 1, 2)


@lru_cache(maxsize=64)
def _scale_and_shift(width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of a row of so many pixels; made once, because copying them to a GPU waits for it."""
    std = torch.tensor(IMAGE_STD)
    # A row of numbers, not three: the innermost loop then runs over a row of the image.
    scale = (1 / (255 * std)).repeat(width)
    shift = (-torch.tensor(IMAGE_MEAN) / std).repeat(width)
    return scale.to(device), shift.to(device)
