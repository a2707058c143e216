"""The views of pretrain/augment.py for a whole batch at once, on the device where its images lie.

What chance decides about a view is drawn by `augment.draw_views` and comes as one row of numbers;
here are only the pixels, in float32 where a CPU rounds to uint8 after each step. The operations
are few and large, so that a GPU is not kept waiting for launches, and none waits for the device.
Letters: n images, V views of each, B = n * V, D side of a stored image, S side of a view,
P = S * S pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain import colour
from pretrain.augment import Recipe, ViewParameters

# Steps of the jitter before and after the hue: each of the other three has one place in both.
PLACES = 6
# What a row holds: where the crop begins (y, x) and how far it extends, in pixels of the stored
# image; the three factors; hue (share of a circle), order, gray, number of the blur's kernel.
COLUMNS = 11
FACTORS, HUE, ORDER, GRAY, BLUR = 4, 7, 8, 9, 10  # the first column of each
# Values that a thread of a CPU works on at once: so many float32 stay in its cache.
CACHED = 200_000


def row(chosen: ViewParameters, *, height: int, width: int, side: int) -> tuple[float, ...]:
    """The numbers [COLUMNS] of a view of an image of H x W that is stored as D x D."""
    top, left, h, w = chosen.crop
    down, right = side / height, side / width
    begin, extent = left * right, w * right
    if chosen.flip:  # from the right end to the left
        begin, extent = begin + extent, -extent
    return (
        top * down,
        begin,
        h * down,
        extent,
        *(chosen.factors or (1.0, 1.0, 1.0)),
        colour.hue_steps(chosen.hue) / 256,
        chosen.order,
        chosen.gray,
        colour.sigma_128(chosen.sigma),
    )


class ViewMaker:
    """Views of one recipe and size; its constants are sent to the device when it is made."""

    def __init__(self, recipe: Recipe, *, size: int, side: int, device: torch.device) -> None:
        self.recipe = recipe
        self.size = size
        self.luma = torch.tensor([colour.LUMA], device=device)  # 1 x 3
        self.places = _places().to(device)
        self.sectors = torch.tensor([5.0, 3.0, 1.0], device=device)[:, None]  # of red, green, blue
        self.begins = torch.arange(side, device=device)  # of the stored pixels
        self.pixels, self.ends = self.begins + 0.5, self.begins + 1
        self.one = torch.ones((), device=device)
        self.steps = (torch.arange(size, device=device) + 0.5) / size
        if recipe.blur_p:
            kernels, taps = _blur_tables(recipe, size)
            self.kernels, self.taps = kernels.to(device), taps.to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor, rows: Tensor) -> Tensor:
        """Views [n, V, S, S, 3] uint8 of images [n, D, 3, D] uint8 by rows [n, V, COLUMNS]."""
        if images.device.type != "cpu":
            return self.make(images, rows)
        room = CACHED * torch.get_num_threads()
        share = max(1, room // (rows.shape[1] * 3 * self.size**2))  # images
        parts = zip(images.split(share), rows.split(share), strict=True)
        return torch.cat([self.make(*part) for part in parts])

    def make(self, images: Tensor, rows: Tensor) -> Tensor:
        """The views of as many images as are worked on at once."""
        count, views, _ = rows.shape
        x = self.crop(images, rows)  # B x 3 x P
        rows = rows.flatten(0, 1)  # B x COLUMNS
        if self.recipe.gray_p and self.recipe.gray_first:
            x = self.grayscale(x, rows[:, GRAY])
        if self.recipe.jitter_p:
            x = self.jitter(x, rows)
        if self.recipe.gray_p and not self.recipe.gray_first:
            x = self.grayscale(x, rows[:, GRAY])
        if self.recipe.blur_p:
            x = self.blur(x, rows[:, BLUR])
        x = x.add_(0.5).view(-1, 3, self.size, self.size)
        # channels_last is the order in which a view's pixels lie
        x = x.to(torch.uint8, memory_format=torch.channels_last).permute(0, 2, 3, 1)
        return x.view(count, views, self.size, self.size, 3)

    def crop(self, images: Tensor, rows: Tensor) -> Tensor:
        """The crops resized, bilinear and antialiased, as matrix products: [B, 3, P], 0..255."""
        down, across = self.crop_weights(rows)  # each n x V x S x D
        x = images.flatten(2).float()  # n x D x 3D
        x = down.flatten(1, 2) @ x  # n x VS x 3D
        x = x.view(-1, self.size * 3, len(self.pixels))  # B x 3S x D
        x = x @ across.flatten(0, 1).transpose(1, 2)  # B x 3S x S
        return x.view(-1, self.size, 3, self.size).transpose(1, 2).flatten(2)

    def crop_weights(self, rows: Tensor) -> Tensor:
        """How much each stored pixel counts in each pixel of a view: [2, n, V, S, D], y then x.

        The triangle of `augment.resize`. Of a pixel that the crop cuts through counts the part
        inside: where both sizes are equal a crop cuts through none.
        """
        begin, extent = rows[..., :FACTORS].unflatten(-1, (2, 2)).movedim(-1, 0).unbind(-1)
        centre = torch.addcmul(begin[..., None], extent[..., None], self.steps)  # 2 x n x V x S
        reach = (extent.abs() / self.size).clamp_(min=1)[..., None, None]
        distance = (self.pixels - centre[..., None]).abs_()  # 2 x n x V x S x D
        weights = torch.addcdiv(self.one, distance, reach, value=-1).clamp_(min=0)
        end = begin + extent
        low, high = torch.minimum(begin, end)[..., None], torch.maximum(begin, end)[..., None]
        inside = self.ends.minimum(high) - self.begins.maximum(low)  # 2 x n x V x D
        weights.mul_(inside.clamp_(0, 1)[..., None, :])
        return weights.div_(weights.sum(-1, keepdim=True))

    def jitter(self, x: Tensor, rows: Tensor) -> Tensor:
        """`colour.jitter` of each view [B, 3, P] in its own order.

        Brightness, contrast and saturation are x -> scale * x + gray * luma(x) + shift. The hue is
        turned once, and each of the three has its place before or after it; in the places that it
        does not take, nothing changes.
        """
        change = (rows[:, FACTORS:HUE] - 1)[:, None] * self.places[rows[:, ORDER].long()]
        scale = (change.sum(2) + 1)[..., None, None]  # B x PLACES x 1 x 1
        rest = (-change)[..., None, None]
        gray, mean = rest[:, :, colour.SATURATION], rest[:, :, colour.CONTRAST]
        for place in range(PLACES):
            if place == PLACES // 2:
                x = self.turn_hue(x, rows[:, HUE])
            luma = self.luma @ x  # B x 1 x P
            shift = luma.mean(2, keepdim=True) * mean[:, place]
            shift = torch.addcmul(shift, luma, gray[:, place])
            x = torch.addcmul(shift, x, scale[:, place]).clamp_(0, 255)
        return x

    def turn_hue(self, x: Tensor, turn: Tensor) -> Tensor:
        """The hue of each view [B, 3, P] turned by its share [B] of a circle; HSV's V and S stay.

        With h the hue in sixths of a circle and c the chroma, red, green and blue are
        V - c * max(0, min(k, 4 - k, 1)) where k = (5 + h, 3 + h, 1 + h) mod 6.
        """
        value, largest = x.max(1, keepdim=True)  # B x 1 x P
        chroma = value - x.amin(1, keepdim=True)
        # g - b where red is largest, b - r where green is, r - g where blue is
        h = (x.roll(-1, 1) - x.roll(-2, 1)).gather(1, largest)
        h.div_(chroma.clamp(min=1e-6)).add_(largest, alpha=2).add_(6 * turn[:, None, None])
        k = (h + self.sectors).remainder_(6)
        return torch.addcmul(value, chroma, torch.minimum(k, 4 - k).clamp_(0, 1), value=-1)

    def grayscale(self, x: Tensor, where: Tensor) -> Tensor:
        """The luma in the views [B, 3, P] that a one in `where` [B] names."""
        return torch.where(where[:, None, None] > 0, self.luma @ x, x)

    def blur(self, x: Tensor, number: Tensor) -> Tensor:
        """Each view [B, 3, P] by the kernel of its `number` [B], edges repeated."""
        size = self.size
        weights = (self.kernels[number.long()] @ self.taps).view(-1, size, size)  # B x S x S
        x = x.view(-1, 3 * size, size) @ weights.transpose(1, 2)
        return (weights[:, None] @ x.view(-1, 3, size, size)).flatten(2)


def _places() -> Tensor:
    """For each order of the jitter, which step [3] each place takes: [24, PLACES, 3] of 0 and 1."""
    places = torch.zeros(len(colour.ORDERS), PLACES, 3)
    for number, order in enumerate(colour.ORDERS):
        before = order.index(colour.HUE)
        others = [step for step in order if step != colour.HUE]
        for position, step in enumerate(others):
            places[number, position if position < before else PLACES // 2 + position, step] = 1
    return places


def _blur_tables(recipe: Recipe, size: int) -> tuple[Tensor, Tensor]:
    """The kernels [numbers, T] of all blurs, and where each tap falls: [T, S * S] of 0 and 1."""
    last = colour.sigma_128(recipe.blur_sigma[1])
    found = [torch.from_numpy(colour.blur_kernel(number)) for number in range(last + 1)]
    reach = max(len(kernel) for kernel in found) // 2
    kernels = torch.zeros(len(found), 2 * reach + 1)
    for own, kernel in zip(kernels, found, strict=True):
        own[reach - len(kernel) // 2 :][: len(kernel)] = kernel
    taps = torch.zeros(2 * reach + 1, size, size)
    at = torch.arange(size)
    for number, tap in enumerate(taps):
        tap[at, (at + number - reach).clamp(0, size - 1)] = 1
    return kernels, taps.flatten(1)
