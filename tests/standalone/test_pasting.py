"""Pasted masks: run lengths by hand, and held to pycocotools' of images pasted one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from moco_det.standalone import pasting
from moco_det.standalone.pasting import encode_masks


def pixels(rows: slice, columns: slice, side: int = 8) -> np.ndarray:
    image = np.zeros((side, side), dtype=bool)
    image[rows, columns] = True
    return image


def paste(mask: Tensor, box: Tensor, height: int, width: int) -> np.ndarray:
    """The slow reference: every pixel of the image is sampled, at its centre."""
    x, y = (
        (torch.arange(side) + 0.5 - box[k]) / (box[k + 2] - box[k])
        for k, side in enumerate((width, height))
    )
    shape = (height, width)
    grid = torch.stack([(x * 2 - 1).expand(shape), (y * 2 - 1)[:, None].expand(shape)], dim=-1)
    soft = F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
    return np.asarray(soft >= 0.5)


def encode(image: np.ndarray) -> str:
    rle = coco_mask.encode(np.asfortranarray(image.astype(np.uint8)))
    return str(rle["counts"].decode("ascii"))


def pasted(mask: Tensor, box: Tensor, height: int, width: int) -> np.ndarray:
    """What `encode_masks` makes of one mask, as an image."""
    (counts,) = encode_masks(mask[None], box[None], torch.tensor([[height, width]]))
    rle = {"size": [height, width], "counts": counts}
    assert encode(coco_mask.decode(rle)) == counts
    return np.asarray(coco_mask.decode(rle)).astype(bool)


@pytest.mark.parametrize("at_once", [1, 3000, 10**6])  # strip by strip, some together, all at once
@pytest.mark.parametrize("kind", ["random", "hard", "full, empty and a half"])
def test_the_text_is_pycocotools_of_the_pasted_image(
    kind: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pasting.AT_ONCE, "cpu", at_once)
    random = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 90, (120, 2), generator=random)
    sizes[:20] = torch.tensor([300, 400])
    limit = sizes.flip(1).repeat(1, 2).float()
    low = torch.rand(120, 2, generator=random) * 80 - 15
    extent = 0.3 + 60 * torch.rand(120, 2, generator=random) ** 2
    boxes = torch.cat([low, low + extent], dim=1)  # some hang over, some lie outside
    boxes[:10, 2:] += 200
    boxes[20:60] = torch.minimum(boxes[20:60].clamp(min=0), limit[20:60])
    boxes[20:60, 2:] = torch.maximum(boxes[20:60, 2:], boxes[20:60, :2] + 0.001)
    boxes[60:80, :2], boxes[60:80, 2:] = 0, limit[60:80, 2:]  # as large as their images
    masks = torch.rand(120, 14, 14, generator=random)
    if kind == "hard":
        masks = masks.round()
    if kind == "full, empty and a half":
        masks[::3], masks[1::3], masks[2::3] = 1, 0, 0.5
    rows = zip(masks, boxes, sizes.tolist(), strict=True)
    expected = [encode(paste(mask, box, *size)) for mask, box, size in rows]
    assert encode_masks(masks, boxes, sizes) == expected


def test_no_masks_have_no_text() -> None:
    nothing = torch.zeros(0, 2, dtype=torch.int64)
    assert encode_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), nothing) == []


@pytest.mark.parametrize("row", [0, 3, 7])
@pytest.mark.parametrize("column", [0, 3, 7])
def test_a_single_pixel(row: int, column: int) -> None:
    box = torch.tensor([column, row, column + 1, row + 1]).float()
    image = pasted(torch.ones(4, 4), box, 8, 8)
    np.testing.assert_array_equal(image, pixels(slice(row, row + 1), slice(column, column + 1)))


def test_columns_that_are_full_are_one_run() -> None:
    box = torch.tensor([2.0, 0, 6, 8])
    np.testing.assert_array_equal(
        pasted(torch.ones(4, 4), box, 8, 8), pixels(slice(None), slice(2, 6))
    )
    (counts,) = encode_masks(torch.ones(1, 4, 4), box[None], torch.tensor([[8, 8]]))
    assert counts == encode(pixels(slice(None), slice(2, 6))) == "`0P1`0"  # 16, 32, 16


def test_a_full_mask_fills_its_box_and_nothing_else() -> None:
    image = pasted(torch.ones(4, 4), torch.tensor([2.0, 1, 6, 5]), 8, 8)
    np.testing.assert_array_equal(image, pixels(slice(1, 5), slice(2, 6)))
    # a mask texel of two pixels: the outermost centres lie 1/4 texel outside the mask's, and
    # 0.75 * 0.75 = 0.56 of a corner is left
    assert pasted(torch.ones(4, 4), torch.tensor([0.0, 0, 8, 8]), 8, 8).all()


def test_half_a_mask_fills_half_its_box() -> None:
    mask = torch.zeros(4, 4)
    mask[:, :2] = 1
    image = pasted(mask, torch.tensor([0.0, 0, 8, 8]), 8, 8)
    # between the columns 1 and 2 of the mask lies x = 4: 3.5 has 0.75, 4.5 has 0.25
    np.testing.assert_array_equal(image, pixels(slice(0, 8), slice(0, 4)))


def test_exactly_a_half_is_inside() -> None:
    image = pasted(torch.full((4, 4), 0.5), torch.tensor([0.0, 0, 4, 4]), 4, 4)
    assert image.all()
    assert not pasted(torch.full((4, 4), 0.49), torch.tensor([0.0, 0, 4, 4]), 4, 4).any()


def test_what_hangs_over_the_image_is_cut_and_outside_is_nothing() -> None:
    image = pasted(torch.ones(4, 4), torch.tensor([6.0, 6, 10, 10]), 8, 8)
    np.testing.assert_array_equal(image, pixels(slice(6, 8), slice(6, 8)))
    assert not pasted(torch.ones(4, 4), torch.tensor([20.0, 20, 24, 24]), 8, 8).any()
