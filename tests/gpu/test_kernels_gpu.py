"""The Triton kernels against torchvision; with TRITON_INTERPRET=1 on a CPU too, slowly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms
from torchvision.ops import roi_align as torchvision_roi_align

pytest.importorskip("triton")
from moco_det.standalone import kernels  # noqa: E402
from moco_det.standalone.roi_align import ROIPooler  # noqa: E402

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("triton_runs")]


def made_boxes(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes of three problems, their groups, and which of them are real."""
    problems, n = 3, 3000 if device == "cuda" else 110
    random = torch.Generator().manual_seed(0)
    low = torch.rand(problems, n, 2, generator=random) * (n / 2) ** 0.5 * 6
    boxes = torch.cat([low, low + 8 + 16 * torch.rand(problems, n, 2, generator=random)], dim=2)
    real = torch.rand(problems, n, generator=random) > 0.1
    real[2] = False
    return boxes, torch.randint(0, 3, (problems, n), generator=random), real


@pytest.mark.parametrize("grouped", [False, True])
def test_nms_keeps_what_torchvisions_keeps(grouped: bool, device: str) -> None:
    boxes, groups, real = made_boxes(device)
    expected = torch.zeros_like(real)
    for i, some in enumerate(real):
        index = some.nonzero(as_tuple=True)[0]
        own = groups[i, index] if grouped else torch.zeros_like(index)
        expected[i, index[batched_nms(boxes[i, index], -index.float(), own, 0.5)]] = True
    moved = boxes.to(device), groups.to(device) if grouped else None, real.to(device)
    assert torch.equal(kernels.nms(*moved, 0.5, len(real[0])).cpu(), expected)
    assert 0.2 < expected[0].float().mean() < 0.9
    # the first 20 are right where no more are asked for
    few = kernels.nms(*moved, 0.5, 20).cpu()
    for found, wanted in zip(few, expected, strict=True):
        assert found.nonzero()[:20].tolist() == wanted.nonzero()[:20].tolist()


def test_nms_of_nothing(device: str) -> None:
    nothing = torch.zeros(2, 0, 4, device=device)
    real = torch.zeros(2, 0, dtype=torch.bool, device=device)
    assert kernels.nms(nothing, None, real, 0.5, 5).shape == (2, 0)


# image, box: inside, over each border, far outside, without area, the whole image
ROIS = [
    [0, 12.0, 20, 60, 55],
    [1, -20, -9, 40, 200],
    [0, 170, 120, 260, 300],
    [1, 500, 500, 600, 600],
    [0, 30, 30, 30, 30],
    [1, 0, 0, 208, 160],
]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_regions_and_gradients_are_torchvisions(
    sampling_ratio: int, aligned: bool, every: int, device: str
) -> None:
    random = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, h, w, generator=random) for h, w in ((20, 26), (10, 13))]
    rois, levels = torch.tensor(ROIS), torch.tensor([0, 1, 0, 1, 0, 1])
    bins = 4
    theirs = [m.clone().requires_grad_() for m in maps]
    expected = torch.zeros(len(rois), 3, bins, bins)
    for level, feature in enumerate(theirs):
        scale = 1 / (8 * 2**level)
        part = torchvision_roi_align(feature, rois, (bins, bins), scale, sampling_ratio, aligned)
        expected = expected + torch.where((levels == level)[:, None, None, None], part, 0.0)
    expected = expected[:, :, ::every, ::every]
    ours = [m.to(device, copy=True).requires_grad_() for m in maps]
    pooler = ROIPooler(
        output_size=bins, strides=(8, 16), sampling_ratio=sampling_ratio, aligned=aligned
    )
    found = kernels.ROIAlign.apply(pooler, every, rois.to(device), levels.to(device), *ours)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=random)
    (expected * weights).sum().backward()
    (found * weights.to(device)).sum().backward()
    for one, two in zip(ours, theirs, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.cpu(), two.grad, atol=1e-4, rtol=1e-4)
