"""The whole detector: pyramid, batches, training on images with and without objects."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.resnet.layers import Conv2d
from moco_det.resnet.network import ResNet
from moco_det.standalone.backbones import FPN
from moco_det.standalone.build import build_detector
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.targets import Targets
from tests.golden.filling import OBJECTS, SIZES, fill, images
from tests.standalone.targets import targets_of
from tests.standalone.tiny import tiny_config


def targets(*, empty: bool = False) -> list[Targets]:
    return targets_of(((), ()) if empty else OBJECTS)


def make_detector(changes: dict[str, str] | None = None) -> GeneralizedRCNN:
    torch.manual_seed(0)
    return build_detector(tiny_config(changes))


def make_fpn(fuse_type: str = "sum") -> FPN:
    bottom_up = ResNet(ARCHITECTURES["resnet18"])
    return FPN(
        bottom_up,
        in_features=["res2", "res3", "res4", "res5"],
        out_channels=8,
        norm="",
        fuse_type=fuse_type,
    )


@pytest.mark.parametrize(
    ("fuse_type", "laterals", "expected"),
    [
        # p5 is its lateral; below it stands lateral + coarser, here 2 + 1, 4 + 3, 8 + 7
        ("sum", {5: 1.0, 4: 2.0, 3: 4.0, 2: 8.0}, {5: 1.0, 4: 3.0, 3: 7.0, 2: 15.0}),
        # the same halved: (2 + 1) / 2 = 1.5, (4 + 1.5) / 2 = 2.75, (8 + 2.75) / 2 = 5.375
        ("avg", {5: 1.0, 4: 2.0, 3: 4.0, 2: 8.0}, {5: 1.0, 4: 1.5, 3: 2.75, 2: 5.375}),
    ],
)
def test_the_pyramid_adds_from_coarse_to_fine(
    fuse_type: str, laterals: dict[int, float], expected: dict[int, float]
) -> None:
    fpn = make_fpn(fuse_type)
    with torch.no_grad():
        for level, value in laterals.items():
            lateral, output = (fpn.get_submodule(f"fpn_{k}{level}") for k in ("lateral", "output"))
            assert isinstance(lateral, Conv2d) and isinstance(output, Conv2d)
            assert lateral.bias is not None
            lateral.weight.zero_()
            lateral.bias.fill_(value)
            output.weight.zero_()
            for channel in range(8):
                output.weight[channel, channel, 1, 1] = 1.0
        maps = fpn(torch.zeros(1, 3, 64, 96))
    assert {i: maps[f"p{i}"].unique().tolist() for i in expected} == {
        i: [value] for i, value in expected.items()
    }
    assert [tuple(maps[f"p{i}"].shape[-2:]) for i in range(2, 7)] == [
        (16, 24),
        (8, 12),
        (4, 6),
        (2, 3),
        (1, 2),
    ]
    assert fpn.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert fpn.size_divisibility == 32


def test_the_coarsest_map_is_every_second_pixel() -> None:
    torch.manual_seed(0)
    maps = make_fpn().eval()(torch.randn(1, 3, 96, 160))
    assert torch.equal(maps["p6"], maps["p5"][:, :, ::2, ::2])


def test_a_norm_in_the_pyramid_takes_the_bias_away() -> None:
    fpn = make_detector().backbone
    for level in (2, 3, 4, 5):
        for kind in ("lateral", "output"):
            layer = fpn.get_submodule(f"fpn_{kind}{level}")
            assert isinstance(layer, Conv2d) and layer.bias is None
            assert isinstance(layer.norm, nn.BatchNorm2d)


def test_gaps_between_pyramid_levels_are_refused() -> None:
    bottom_up = ResNet(ARCHITECTURES["resnet18"])
    with pytest.raises(ValueError, match="contiguous"):
        FPN(bottom_up, in_features=["res2", "res4"], out_channels=8, norm="", fuse_type="sum")
    with pytest.raises(InputError, match="contiguous"):
        make_detector({"MODEL.FPN.IN_FEATURES": "['res2', 'res4']"})


def test_images_are_normalised_then_padded_with_zeros() -> None:
    model = make_detector(
        {"MODEL.PIXEL_MEAN": "[10., 20., 30.]", "MODEL.PIXEL_STD": "[2., 4., 5.]"}
    )
    first = torch.full((3, 20, 40), 40, dtype=torch.uint8)
    second = torch.full((3, 33, 10), 40.0)
    batch, sizes = model.batch([first, second])
    assert sizes == [(20, 40), (33, 10)]
    assert batch.shape == (2, 3, 64, 64)  # 33 and 40, to multiples of 32
    # (40 - 10) / 2, (40 - 20) / 4, (40 - 30) / 5
    assert batch[0, :, 0, 0].tolist() == batch[1, :, 32, 9].tolist() == [15, 5, 2]
    assert batch[0, :, 20:].abs().sum() == 0 and batch[0, :, :, 40:].abs().sum() == 0


@pytest.mark.parametrize("empty", [False, True], ids=["with objects", "without objects"])
def test_every_parameter_gets_a_finite_gradient(empty: bool) -> None:
    model = make_detector().train()
    losses = model(images(), targets(empty=empty))
    assert isinstance(losses, dict)
    assert set(losses) == {
        "loss_cls",
        "loss_box_reg",
        "loss_mask",
        "loss_rpn_cls",
        "loss_rpn_loc",
    }
    assert all(math.isfinite(loss.item()) for loss in losses.values())
    sum(losses.values(), torch.zeros(())).backward()
    bad = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert bad == []
    if empty:
        zero = ("loss_box_reg", "loss_mask", "loss_rpn_loc")
        assert {losses[name].item() for name in zero} == {0.0}


STAGES = ("stem.", "res2.", "res3.", "res4.", "res5.")


@pytest.mark.parametrize(("freeze_at", "norm"), [(2, "BN"), (5, "BN"), (5, "SyncBN")])
def test_frozen_stages_get_no_gradient_and_keep_their_statistics(freeze_at: int, norm: str) -> None:
    # check() demands weights for frozen stages: a name is enough, nothing is loaded here
    keys = {"MODEL.BACKBONE.FREEZE_AT": str(freeze_at), "MODEL.WEIGHTS": "some.pkl"}
    keys |= {"MODEL.RESNETS.NORM": norm, "MODEL.FPN.NORM": norm}
    model = make_detector(keys).train()
    before = {n: t.clone() for n, t in model.backbone.bottom_up.state_dict().items()}
    losses = model(images(), targets())
    sum(losses.values(), torch.zeros(())).backward()
    for name, parameter in model.backbone.bottom_up.named_parameters():
        frozen = name.startswith(STAGES[:freeze_at])
        assert (parameter.grad is None) == frozen, name
    for name, tensor in model.backbone.bottom_up.state_dict().items():
        if name.startswith(STAGES[:freeze_at]):
            assert torch.equal(tensor, before[name]), name
        elif name.endswith("running_mean"):
            assert not torch.equal(tensor, before[name]), name
    others = [(n, p) for n, p in model.named_parameters() if "bottom_up" not in n]
    assert all(p.grad is not None for _, p in others) and len(others) > 20


def test_an_image_is_detected_alike_alone_and_in_a_batch() -> None:
    model = make_detector({"MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.01"})
    fill(model)
    model.eval()
    one, two = images((SIZES[0], SIZES[0]))
    with torch.no_grad():
        alone, together = model([one])[0], model([one, two])[0]
    assert len(alone.boxes) == 5  # TEST.DETECTIONS_PER_IMAGE
    torch.testing.assert_close(alone.boxes, together.boxes, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(alone.scores, together.scores)
    torch.testing.assert_close(alone.masks, together.masks, atol=1e-5, rtol=1e-4)


def test_channels_last_computes_what_channels_first_do() -> None:
    model = make_detector().eval()
    batch, _ = model.batch(images())
    assert batch.is_contiguous(memory_format=torch.channels_last)
    found = model.backbone(batch)
    first = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for name, expected in first.backbone(batch.contiguous()).items():
        torch.testing.assert_close(found[name], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL.ANCHOR_GENERATOR.SIZES": "[[8], [16]]"}, "2 lists of anchor sizes"),
        ({"MODEL.RPN.IN_FEATURES": "['p2', 'p9']"}, "p9"),
        ({"MODEL.RESNETS.OUT_FEATURES": "['res2', 'res7']"}, "res7"),
    ],
)
def test_a_config_that_fits_no_detector_is_bad_input(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_detector(changes)
