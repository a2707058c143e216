"""Encoders to probe: what is loaded is what was saved, and what differs between arms is known."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moco_det.foundation.errors import InputError
from pretrain import checkpoints, encoders
from pretrain.encoders import Encoder
from pretrain.probe.weights import array_start, packed_start, random_start

from .small_trunk import SmallTrunk

FED = {
    "format": "RGB",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(encoders.ARCHITECTURES, "small", SmallTrunk)


def packed_content(head: str = "mlp", **changes: Any) -> dict[str, Any]:
    torch.manual_seed(1)
    encoder = Encoder("small", head=head, dim=8)
    trunk = {k: v for k, v in encoder.trunk.state_dict().items() if not k.startswith("fc.")}
    made = {
        "format": checkpoints.FORMAT,
        "method": "moco",
        "arch": "small",
        "encoder": trunk,
        "head": encoder.head.state_dict(),
        "state": {"iteration": 70},
        "config": {"SEED": 3, "OUTPUT_DIR": "a", "AUGMENT": {"SIZE": 64}, "MOCO": {"K": 64}},
    }
    return {**made, **changes}


@pytest.mark.parametrize("head", ["fc", "mlp"])
def test_a_checkpoint_comes_back_with_its_head(head: str, tmp_path: Path) -> None:
    packed = packed_content(head)
    torch.save(packed, tmp_path / "checkpoint.pth")
    content = checkpoints.read(tmp_path / "checkpoint.pth")
    encoder = packed_start(content, origin="checkpoint.pth").encoder
    for part, module in (("encoder", encoder.trunk), ("head", encoder.head)):
        state = module.state_dict()
        assert state.keys() == packed[part].keys()
        assert all(torch.equal(state[name], value) for name, value in packed[part].items())


def test_where_a_checkpoint_comes_from_is_known() -> None:
    start = packed_start(packed_content(), origin="c.pth")
    assert (start.arch, start.method, start.iterations, start.seed) == ("small", "moco", 70, 3)
    assert start.size == 64 and start.embeds
    assert not packed_start(packed_content(method="supervised"), origin="c.pth").embeds


def test_trials_of_one_arm_share_their_settings_and_other_arms_do_not() -> None:
    first = packed_content()
    seed, queue = copy.deepcopy(first), copy.deepcopy(first)
    seed["config"] |= {"SEED": 4, "OUTPUT_DIR": "b"}
    queue["config"]["MOCO"]["K"] = 128
    digests = [packed_start(c, origin="c").settings for c in (first, seed, queue)]
    assert digests[0] == digests[1] != digests[2]


def test_random_weights_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    a, b, c = (random_start("small", seed=seed).encoder for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.trunk.conv1.weight, b.trunk.conv1.weight)
    assert not torch.equal(a.trunk.conv1.weight, c.trunk.conv1.weight)


def test_arrays_of_others_are_taken_whole_or_not_at_all() -> None:
    arrays = {k: v.numpy() for k, v in packed_content()["encoder"].items()}
    without_counters = {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
    start = array_start(without_counters, arch="small", method=None, fed=FED, origin="t.pth")
    assert np.array_equal(start.encoder.trunk.conv1.weight.detach().numpy(), arrays["conv1.weight"])
    assert start.iterations is None and not start.embeds
    missing = {k: v for k, v in arrays.items() if k != "conv1.weight"}
    for wrong in (missing, {**arrays, "conv9.weight": arrays["conv1.weight"]}):
        with pytest.raises(InputError, match="t.pth is not a whole small"):
            array_start(wrong, arch="small", method=None, fed=FED, origin="t.pth")


@pytest.mark.parametrize(
    "fed",
    [
        None,
        {**FED, "format": "BGR"},
        {**FED, "stride_in_1x1": True},
        {**FED, "std": [1.0, 1.0, 1.0]},
    ],
)
def test_weights_that_our_views_would_feed_wrongly_are_refused(fed: dict[str, Any] | None) -> None:
    arrays = {k: v.numpy() for k, v in packed_content()["encoder"].items()}
    with pytest.raises(InputError, match="t.pth was not trained on RGB"):
        array_start(arrays, arch="small", method=None, fed=fed, origin="t.pth")


def test_damaged_weights_are_named() -> None:
    packed = packed_content()
    packed["encoder"]["conv1.weight"][0] = float("inf")
    with pytest.raises(InputError, match="c.pth: conv1.weight is not finite"):
        packed_start(packed, origin="c.pth")
    with pytest.raises(InputError, match="c.pth: no architecture 'vit'"):
        packed_start(packed_content(arch="vit"), origin="c.pth")
