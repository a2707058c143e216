"""ROIAlign on the CPU: torchvision's numbers and gradients, and 1x1 convolutions moved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.resnet.network import BottleneckBlock, make_stage
from moco_det.standalone import roi_align as rois_on_cpu
from moco_det.standalone.roi_align import ROIPooler
from moco_det.standalone.roi_heads import block_of_regions
from tests.standalone.targets import rois_of_images

STRIDE = 8


def pooler_of(bins: int, *, sampling_ratio: int = 0, aligned: bool = True) -> ROIPooler:
    return ROIPooler(
        output_size=bins, strides=[STRIDE], sampling_ratio=sampling_ratio, aligned=aligned
    )


@pytest.fixture(autouse=True, params=["small", "large"])
def maps_count_as(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small and large maps are pooled in two ways: everything here holds for both."""
    if request.param == "large":
        monkeypatch.setattr(rois_on_cpu, "SMALL", 0)


# in pixels of an image of 160 x 208: inside, over each border, far outside, without area,
# without width, the whole image, and thinner than a bin
BOXES = torch.tensor(
    [
        [20.0, 30, 90, 75],
        [-30, -20, 40, 50],
        [150, 100, 260, 200],
        [900, 900, 950, 950],
        [50, 50, 50, 50],
        [60, 20, 60, 90],
        [0, 0, 208, 160],
        [100.2, 33.3, 101.1, 140],
    ]
)


def rois() -> Tensor:
    random = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) * 150
    random[:, 2:] += random[:, :2]
    boxes = torch.cat([BOXES, random])
    return torch.cat([(torch.arange(len(boxes)) % 2)[:, None].float(), boxes], dim=1)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_regions_and_their_gradient_are_torchvisions(
    aligned: bool, sampling_ratio: int, layout: torch.memory_format
) -> None:
    random = torch.Generator().manual_seed(1)
    maps = torch.randn(2, 5, 20, 26, generator=random).contiguous(memory_format=layout)
    ours, theirs = (maps.clone().requires_grad_() for _ in range(2))
    expected = roi_align(theirs, rois(), (7, 7), 1 / STRIDE, sampling_ratio, aligned)
    found = pooler_of(7, sampling_ratio=sampling_ratio, aligned=aligned)([ours], rois())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(expected.shape, generator=random)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)


def test_every_second_bin_is_every_second_bin() -> None:
    maps = torch.randn(2, 3, 20, 26, generator=torch.Generator().manual_seed(2))
    whole = pooler_of(6)([maps], rois())
    torch.testing.assert_close(pooler_of(6)([maps], rois(), every=2), whole[:, :, ::2, ::2])


def test_no_regions_have_a_gradient_of_zero() -> None:
    maps = torch.randn(1, 3, 4, 4, requires_grad=True)
    found = pooler_of(2)([maps], torch.zeros(0, 5))
    found.sum().backward()
    assert found.shape == (0, 3, 2, 2) and maps.grad is not None and not maps.grad.any()


def test_in_bfloat16_the_interpolation_stays_exact() -> None:
    maps = torch.randn(2, 3, 20, 26, generator=torch.Generator().manual_seed(3)).bfloat16()
    given = maps.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pooler_of(4)([given], rois())
    exact = pooler_of(4)([maps.detach().float()], rois())
    assert torch.equal(found, exact.bfloat16())
    found.sum().backward()
    assert given.grad is not None and given.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("by_torchvision", [False, True])
def test_boxes_stay_where_they_are_whatever_the_format_of_the_map(
    by_torchvision: bool, dtype: torch.dtype
) -> None:
    """Small boxes far from the origin of a map of 160 x 160 cells, 1,280 pixels."""
    random = torch.Generator().manual_seed(4)
    maps = torch.randn(1, 3, 160, 160, generator=random).to(dtype)
    corner = 900 + 300 * torch.rand(50, 2, generator=random)
    boxes = torch.cat([corner, corner + 16 + 32 * torch.rand(50, 2, generator=random)], dim=1)
    pooler = pooler_of(7)
    own = rois_of_images([boxes])
    with torch.autocast("cpu", dtype=dtype):
        level = torch.zeros(50, dtype=torch.int64)
        found = pooler.by_torchvision([maps], own, level) if by_torchvision else pooler([maps], own)
    exact = roi_align(maps.float(), own, (7, 7), 1 / 8, 0, True)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, atol=1e-6, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", ""])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
def test_a_block_on_regions_is_the_same_with_its_1x1_convolutions_moved(
    stride_in_1x1: bool, norm: str
) -> None:
    torch.manual_seed(0)
    stage = make_stage("res5", ARCHITECTURES["resnet50"], norm=norm, stride_in_1x1=stride_in_1x1)
    block = stage[0]
    assert isinstance(block, BottleneckBlock)
    for parameter in block.parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    pooler = ROIPooler(output_size=6, strides=[16], sampling_ratio=0, aligned=True)
    feature = torch.randn(2, 1024, 5, 6)
    boxes = torch.tensor([[0, 3.0, 5, 70, 60], [0, -9, 20, 40, 90], [1, 10.0, 0, 95, 80]])
    results = []
    for moved in (False, True):
        own, maps = copy.deepcopy(block), feature.clone().requires_grad_()
        pooled = block_of_regions(own, pooler, maps, boxes) if moved else own(pooler([maps], boxes))
        pooled.square().mean().backward()
        assert maps.grad is not None
        gradients = {name: p.grad for name, p in own.named_parameters()}
        results.append({"out": pooled, "maps": maps.grad, **gradients, **dict(own.named_buffers())})
    for name, expected in results[0].items():
        assert expected is not None
        found, scale = results[1][name], expected.abs().max().item()
        assert (found - expected).abs().max().item() <= 1e-4 * max(scale, 1e-3), name
