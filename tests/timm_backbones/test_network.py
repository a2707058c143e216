"""timm's networks below a pyramid: their names and shapes, and what is refused in one line."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from moco_det.foundation.errors import InputError
from moco_det.timm_backbones.network import STRIDES, TimmBackbone

# {"networks": {name: {"channels": of res2 .. res5, "tensors": how many, "sha256": of all lines}}},
# and of one small network the lines themselves
GOLDEN = json.loads((Path(__file__).parent / "names.json").read_text(encoding="utf-8"))


def lines_of(network: TimmBackbone) -> list[str]:
    state = network.state_dict()
    return [
        f"{tensor} {' '.join(map(str, value.shape))}".strip() for tensor, value in state.items()
    ]


@pytest.mark.parametrize("name", GOLDEN["networks"])
def test_a_network_has_the_channels_names_and_shapes_it_always_had(name: str) -> None:
    with torch.device("meta"):
        network = TimmBackbone(name)
    golden, lines = GOLDEN["networks"][name], lines_of(network)
    assert len(lines) == golden["tensors"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == golden["sha256"]
    assert " ".join(map(str, network.channels.values())) == golden["channels"]


def test_the_names_are_body_and_timms_own() -> None:
    assert lines_of(TimmBackbone("test_convnext")) == GOLDEN["test_convnext"]


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "regnety_002"])
def test_features_are_those_of_timms_features_only_network(name: str) -> None:
    import timm

    torch.manual_seed(0)
    ours = TimmBackbone(name).eval()
    theirs = timm.create_model(name, features_only=True).eval()
    last = {reduction: n for n, reduction in enumerate(theirs.feature_info.reduction())}
    state = {key.removeprefix("body."): value for key, value in ours.state_dict().items()}
    joined = {key: re.sub(r"^([a-z]+)_(\d)", r"\1.\2", key) for key in theirs.state_dict()}
    theirs.load_state_dict({key: state[whole] for key, whole in joined.items()})
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        found, wanted = ours(image), theirs(image)
    for stage, stride in STRIDES.items():
        assert torch.equal(found[stage], wanted[last[stride]]), stage


BAD = [
    (
        {"name": "convnext_atoo"},
        "'convnext_atoo' is no model of timm .*: did you mean convnext_atto or",
    ),
    ({"name": "convnext_atto.imagenet"}, "names no weights of timm .*: take convnext_atto alone"),
    (
        {"name": "vit_small_patch14_dinov2"},
        r"dinov2 gives no features at strides 4, 8, 16 and 32 \(it has 14\), .*: take a model of "
        "four stages, like convnext_tiny .* or a plain ViT of patches of 16 pixels, like vit_small",
    ),
    ({"name": "test_vit_relpos"}, "relpos takes images of one size alone: take a model of four"),
    (
        {"name": "maxvit_tiny_tf_224"},
        r"does not take images of any size \(160 x 96: height \(24\) must be .*: take a model of",
    ),
    (
        {"name": "hrnet_w18_small", "drop_path": 0.1},
        "hrnet_w18_small has no drop path: set MODEL.TIMM.DROP_PATH 0",
    ),
    (
        {"name": "test_convnext", "norm": "FrozenBN"},
        "NORM FrozenBN: test_convnext has no batch norm; leave NORM ''",
    ),
    ({"name": "twins_svt_small", "freeze_at": 1}, "timm names no stages .*BACKBONE.FREEZE_AT 0"),
]


@pytest.mark.parametrize(("keys", "message"), BAD, ids=[str(keys["name"]) for keys, _ in BAD])
def test_a_network_that_does_not_fit_is_one_line_with_a_way_out(
    keys: dict[str, object], message: str
) -> None:
    with torch.device("meta"), pytest.raises(InputError, match=f"^[^\n]*{message}[^\n]*$"):
        TimmBackbone(**keys)  # type: ignore[arg-type]


def test_without_timm_the_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs timm: pip install 'moco-det\[timm\]'"):
        TimmBackbone("convnext_atto")
