"""Weights, images and targets that two engines make alike from names and numbers alone.

Only `RandomState.random_sample` is drawn from: its stream is the same on every machine and in
every numpy, so that nothing large has to be stored beside the golden arrays.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor, nn

# (x0, y0, x1, y1, class) of the objects of each image; the last image has none
OBJECTS = (
    ((6.0, 8.0, 30.0, 40.0, 0), (24.0, 20.0, 60.0, 58.0, 2)),
    ((3.5, 30.25, 20.0, 55.5, 1), (30.0, 4.0, 46.0, 20.0, 0), (2.0, 2.0, 60.0, 26.0, 2)),
)
SIZES = ((64, 64), (60, 62))  # height, width


def values_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor that is fixed by its name: a trained-looking one for that kind of tensor."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    u = torch.from_numpy(random.random_sample(shape) * 2 - 1)  # uniform in [-1, 1)
    if name.endswith("running_var"):
        value = 0.5 + u.abs()
    elif name.endswith("norm.weight"):
        value = 1 + 0.2 * u
    elif len(shape) > 1:
        fan_in = u[0].numel()
        value = u * (3 / fan_in) ** 0.5  # standard deviation 1 / sqrt(fan_in)
    else:
        value = 0.1 * u
    return value.float()


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Every floating-point tensor of the state dict becomes the one of its name."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name not in ("pixel_mean", "pixel_std"):
            tensor.copy_(values_of(name, tuple(tensor.shape)))


def images(sizes: tuple[tuple[int, int], ...] = SIZES, seed: int = 7) -> list[Tensor]:
    """Images (3, H, W) of whole numbers 0..255, float32: coarse blocks and fine noise."""
    random = np.random.RandomState(seed)
    made = []
    for height, width in sizes:
        blocks = random.random_sample((3, height // 8 + 1, width // 8 + 1))
        coarse = blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
        noise = random.random_sample((3, height, width))
        made.append(torch.from_numpy(np.floor(200 * coarse + 55 * noise)).float())
    return made


def polygon_of(box: tuple[float, ...]) -> np.ndarray:
    """The box with its lower left corner cut off, as a flat array x, y, x, y, ..."""
    x0, y0, x1, y1 = box[:4]
    return np.array([x0, y0, x1, y0, x1, y1, x0 + 5, y1, x0, y1 - 5], dtype=np.float64)
