"""Colour jitter, grayscale and blur on uint8 pixels: torchvision's on PIL, in fewer passes.

Brightness, contrast, saturation and their successions are one affine map of a pixel x and its
luma g: x -> scale * x + gray * g + shift. The maps of consecutive steps are merged as long as no
value can leave 0..255 in between, so that the result is that of one step after the other up to
rounding: they round once where PIL cuts the decimals off at every step.

Pixels are RGB [S, S, 3], or one channel [S, S] once they are gray: what follows is then cheaper.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pretrain.images import Image

# Luma weights of ITU-R 601, as PIL's and OpenCV's grayscale.
LUMA = (0.299, 0.587, 0.114)

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = tuple(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))


class Affine(NamedTuple):
    """x -> scale * x + gray * luma(x) + shift."""

    scale: float
    gray: float
    shift: float


IDENTITY = Affine(1.0, 0.0, 0.0)


def merged(first: Affine, then: Affine) -> Affine:
    """`then` after `first`, nothing saturated in between."""
    # luma(first(x)) = (first.scale + first.gray) * luma(x) + first.shift: the weights add to one.
    return Affine(
        then.scale * first.scale,
        then.scale * first.gray + then.gray * (first.scale + first.gray),
        (then.scale + then.gray) * first.shift + then.shift,
    )


def apply(pixels: Image, affine: Affine) -> Image:
    """Every pixel mapped, rounded and saturated, in one pass."""
    scale, gray, shift = affine
    if affine == IDENTITY:
        return pixels
    if pixels.ndim == 2:
        return cv2.transform(pixels, np.array([[scale + gray, shift]], dtype=np.float32))
    r, g, b = (gray * weight for weight in LUMA)
    rows = [[scale + r, g, b, shift], [r, scale + g, b, shift], [r, g, scale + b, shift]]
    return cv2.transform(pixels, np.array(rows, dtype=np.float32))


def mean_luma(pixels: Image) -> float:
    """The mean gray level."""
    r, g, b, _ = cv2.mean(pixels)
    return r if pixels.ndim == 2 else LUMA[0] * r + LUMA[1] * g + LUMA[2] * b


def jitter(
    pixels: Image, factors: tuple[float, float, float], hue_shift: float, order: tuple[int, ...]
) -> Image:
    """Brightness, contrast and saturation by their factors, and hue, in the given order.

    Factors: how much remains of the distance from black, from the image's mean gray, and from the
    pixel's own gray. `hue_shift` as in `hue`. torchvision's ColorJitter.
    """
    pending, may_saturate = IDENTITY, False
    for step in order:
        if may_saturate or step == HUE:
            pixels = apply(pixels, pending)
            pending, may_saturate = IDENTITY, False
        if step == HUE:
            pixels = hue(pixels, hue_shift)
            continue
        factor = factors[step]
        if step == BRIGHTNESS:
            change = Affine(factor, 0.0, 0.0)
        elif step == CONTRAST:
            mean = (pending.scale + pending.gray) * mean_luma(pixels) + pending.shift
            change = Affine(factor, 0.0, (1 - factor) * round(mean))
        else:
            change = Affine(factor, 1 - factor, 0.0)
        pending = merged(pending, change)
        # A factor up to 1 moves towards black or a gray level: nothing leaves 0..255.
        may_saturate = factor > 1
    return apply(pixels, pending)


def hue(pixels: Image, shift: float) -> Image:
    """The hue turned by `shift` of a full circle (-0.5..0.5), in PIL's 256 steps."""
    steps = hue_steps(shift)
    if steps == 0 or pixels.ndim == 2:
        return pixels
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    # uint8 wraps around like the hue. Whole rows at once: adding to every third byte is slower.
    turn = np.zeros(hsv.shape[1:], dtype=np.uint8)
    turn[:, 0] = steps % 256
    rows = hsv.reshape(hsv.shape[0], -1)
    np.add(rows, turn.reshape(-1), out=rows)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def hue_steps(shift: float) -> int:
    """The 256ths of a full circle that PIL turns the hue by."""
    return int(shift * 255)


def grayscale(pixels: Image) -> Image:
    """The luma as one channel [S, S]."""
    return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)


def blur(pixels: Image, sigma: float) -> Image:
    """Gaussian blur with `sigma` in pixels, by the kernel of PIL's filter; edges are repeated."""
    kernel = blur_kernel(sigma_128(sigma))
    if len(kernel) == 1:
        return pixels
    return cv2.sepFilter2D(pixels, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


def sigma_128(sigma: float) -> int:
    """The number of a blur's kernel: 128ths of a pixel."""
    return round(sigma * 128)


@functools.lru_cache(maxsize=1024)
def blur_kernel(number: int) -> NDArray[np.float32]:
    """Weights [taps] of the kernel for a sigma of `number` / 128 pixels, in 256ths that add to one.

    PIL's Gaussian is three boxes of real width in a row, with the variance of the Gaussian
    (Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering",
    2011, Section 2). OpenCV filters uint8 by weights of eight bits: others would be rounded there
    and darken the image.
    """
    variance = (number / 128) ** 2 / 3  # of one box: `radius` whole taps and a part at each end
    radius = int((math.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * radius + 1) * (3 * variance - radius * (radius + 1))
    part /= 6 * ((radius + 1) ** 2 - variance)
    box = np.array([part, *[1.0] * (2 * radius + 1), part])
    box /= box.sum()
    weights = np.round(256 * np.convolve(np.convolve(box, box), box))
    middle = len(weights) // 2
    weights[middle] += 256 - weights.sum()
    reach = int(np.flatnonzero(weights)[-1]) - middle
    return (weights[middle - reach : middle + reach + 1] / 256).astype(np.float32)
