"""A plain ViT as a backbone: its features are timm's, attention within windows, the pyramid."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("timm")

import timm

import tests.weights.small_dinov3  # noqa: F401
from moco_det.foundation.errors import InputError
from moco_det.standalone.build import build_detector
from moco_det.timm_backbones import PLAIN_STAGES
from moco_det.timm_backbones.network import TimmBackbone
from moco_det.timm_backbones.simple_pyramid import SimplePyramid
from tests.standalone.tiny import tiny_config

NAMES = ("test_vit", "vit_micro_dinov3", "vit_tiny_patch16_224")
IMAGE = torch.randn(2, 3, 96, 160, generator=torch.Generator().manual_seed(0))


def made(name: str, **keys: Any) -> TimmBackbone:
    torch.manual_seed(1)
    backbone = TimmBackbone(name, **keys).double().eval()
    with torch.no_grad():
        for parameter in backbone.parameters():  # LayerScales of 1e-5 would hide the blocks
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone


@torch.no_grad()
def features(backbone: TimmBackbone, image: Tensor = IMAGE) -> dict[str, Tensor]:
    return backbone(image.double())


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_timms_network_made_for_the_images_size(name: str) -> None:
    ours = made(name)
    theirs = timm.create_model(name, num_classes=0, img_size=(96, 160)).double().eval()
    state = ours.network.state_dict()
    if "pos_embed" in state:
        # timm's own interpolation, to the other grid
        grid = theirs.patch_embed.grid_size
        state["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], list(grid))
    theirs.load_state_dict(state, strict=False)
    with torch.no_grad():
        tokens = theirs.forward_features(IMAGE.double())[:, theirs.num_prefix_tokens :]
    found = features(ours)
    assert tuple(found) == PLAIN_STAGES and ours.strides == dict.fromkeys(PLAIN_STAGES, 16)
    last = found["last"].flatten(2).transpose(1, 2)
    torch.testing.assert_close(last, tokens, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_of_the_whole_image_changes_nothing(name: str) -> None:
    whole, windowed = features(made(name)), features(made(name, window=10), IMAGE)
    assert not torch.allclose(whole["last"], windowed["last"])  # 6 x 10 cells in one of 10 x 10
    square = IMAGE[..., :96]
    whole, windowed = features(made(name), square), features(made(name, window=6), square)
    for stage, feature in whole.items():
        torch.testing.assert_close(windowed[stage], feature, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["test_vit", "vit_micro_dinov3"])
def test_windows_are_the_attention_of_each_square_by_itself(name: str) -> None:
    """Against a loop over windows and images of the same block."""
    backbone = made(name, window=4)
    block = backbone.network.blocks[1]  # type: ignore[index]
    prefix = int(backbone.network.num_prefix_tokens)  # type: ignore[arg-type]
    assert backbone.windows is not None
    backbone.windows.grid = (6, 10)
    plain = copy.deepcopy(block.attn)
    plain._forward_hooks.clear()
    plain._forward_pre_hooks.clear()
    width = block.attn.proj.in_features
    x = torch.randn(2, prefix + 60, width, dtype=torch.float64)
    rope = torch.randn(60, 2 * width // 2, dtype=torch.float64) if "dinov3" in name else None
    keys = {} if rope is None else {"rope": rope}
    with torch.no_grad():
        found = block.attn(x, **keys)
        firsts = torch.zeros(2, 6, prefix, width, dtype=torch.float64)
        for image in range(2):
            for number, (top, left) in enumerate((t, r) for t in (0, 4) for r in (0, 4, 8)):
                here = [
                    [10 * r + c if r < 6 and c < 10 else -1 for c in range(left, left + 4)]
                    for r in range(top, top + 4)
                ]
                cells = sum(here, [])
                tokens = torch.stack(
                    [x[image, prefix + n] if n >= 0 else torch.zeros(width) for n in cells]
                )
                own = {}
                if rope is not None:
                    zero = torch.zeros(rope.shape[1])
                    own["rope"] = torch.stack([rope[n] if n >= 0 else zero for n in cells])
                out = plain(torch.cat([x[image, :prefix], tokens.double()])[None], **own)[0]
                firsts[image, number] = out[:prefix]
                for n, value in zip(cells, out[prefix:], strict=True):
                    if n >= 0:
                        torch.testing.assert_close(found[image, prefix + n], value)
        torch.testing.assert_close(found[:, :prefix], firsts.mean(dim=1))


def test_every_third_of_twelve_blocks_attends_to_the_whole_image() -> None:
    backbone = TimmBackbone("vit_tiny_patch16_224", window=7)
    blocks = backbone.network.blocks
    whole = [n for n, b in enumerate(blocks) if not b.attn._forward_hooks]  # type: ignore[arg-type]
    assert whole == [2, 5, 8, 11]


def test_a_copy_has_windows_of_its_own() -> None:
    backbone = made("test_vit", window=4)
    twin = copy.deepcopy(backbone)
    features(backbone, IMAGE[..., :64])
    torch.testing.assert_close(features(twin)["last"], features(backbone)["last"])
    assert twin.windows is not backbone.windows


def test_the_pyramid_is_detectron2s() -> None:
    pytest.importorskip("detectron2")
    from detectron2.layers import ShapeSpec
    from detectron2.modeling import Backbone
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool
    from detectron2.modeling.backbone.vit import SimpleFeaturePyramid

    class Net(Backbone):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"last": backbone(x)["last"]}

        def output_shape(self) -> dict[str, ShapeSpec]:
            return {"last": ShapeSpec(channels=64, stride=16)}

    backbone = made("test_vit")
    ours = SimplePyramid(backbone, out_channels=32, norm="").double()
    theirs = SimpleFeaturePyramid(
        Net(), "last", 32, (4.0, 2.0, 1.0, 0.5), top_block=LastLevelMaxPool()
    ).double()
    own = {n: p for n, p in ours.named_parameters() if n.startswith("simfp")}
    real = {n: p for n, p in theirs.named_parameters() if n.startswith("simfp")}
    assert [tuple(p.shape) for p in own.values()] == [tuple(p.shape) for p in real.values()]
    with torch.no_grad():
        for one, other in zip(own.values(), real.values(), strict=True):
            one.copy_(torch.randn_like(one))
            other.copy_(one)
        found, wanted = ours(IMAGE.double()), theirs(IMAGE.double())
    assert list(found) == list(wanted) == ["p2", "p3", "p4", "p5", "p6"]
    for level, feature in wanted.items():
        torch.testing.assert_close(found[level], feature, rtol=1e-9, atol=1e-9)
    assert ours.strides == {name: shape.stride for name, shape in theirs.output_shape().items()}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"name": "test_convnext", "window": 7}, "WINDOW 7: test_convnext is no plain ViT: set 0"),
        (
            {"name": "vit_small_patch16_18x2_224", "window": 7},
            "WINDOW: blocks of this network have no windows: set 0",
        ),
    ],
)
def test_windows_that_a_network_cannot_have_are_refused(keys: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=message):
        TimmBackbone(**keys)


def test_features_that_a_head_asks_for_and_no_pyramid_has_are_named() -> None:
    keys = {
        "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
        "MODEL.TIMM.NAME": "test_vit",
        "MODEL.FPN.NORM": "''",
        "MODEL.RPN.IN_FEATURES": "['res4']",
    }
    with (
        torch.device("meta"),
        pytest.raises(
            InputError,
            match=r"RPN.IN_FEATURES \['res4'\]: the backbone has no res4 but p2, p3, p4, p5",
        ),
    ):
        build_detector(tiny_config(keys))


def test_a_norm_in_the_simple_pyramid_is_refused() -> None:
    with pytest.raises(InputError, match="FPN.NORM BN: a plain ViT's pyramid has LayerNorms"):
        SimplePyramid(TimmBackbone("test_vit"), out_channels=32, norm="BN")
