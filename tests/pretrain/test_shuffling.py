"""Shuffling BN: batch norm over groups, and keys that are not normed with their queries."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moco_det.foundation.errors import InputError
from pretrain.build import bn_splits_per_process
from pretrain.config import PretrainConfig, load_config
from pretrain.encoders import ARCHITECTURES, Encoder, SplitBatchNorm2d
from pretrain.methods.base import Batch
from pretrain.methods.end_to_end import EndToEnd
from pretrain.methods.moco import MoCo
from tests.pretrain.small_methods import batch, end_to_end, forward, moco
from tests.pretrain.small_trunk import SmallTrunk


@pytest.fixture(autouse=True)
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "resnet18", SmallTrunk)


def first_norm_groups(encoder: Encoder) -> list[list[torch.Tensor]]:
    """Fills with the input means of the first norm's sub-batches, one entry a forward pass."""
    seen: list[list[torch.Tensor]] = []
    norm = encoder.trunk.bn1
    groups = norm.splits if isinstance(norm, SplitBatchNorm2d) else 1
    norm.register_forward_pre_hook(
        lambda _, x: seen.append(
            [g.detach().mean(dim=(0, 2, 3)) for g in x[0].tensor_split(groups)]
        )
    )
    return seen


def group_difference(method: MoCo | EndToEnd) -> float:
    """How far query and key sub-batch statistics differ when both views are the same images."""
    assert method.key_encoder is not None
    q_seen, k_seen = first_norm_groups(method.encoder), first_norm_groups(method.key_encoder)
    view = batch().views[0]
    forward(method, Batch((view, view), torch.arange(len(view))))
    pairs = zip(q_seen[0], k_seen[0], strict=True)
    return max(float((q - k).abs().max()) for q, k in pairs)


@pytest.mark.parametrize("make", [moco, end_to_end])
def test_shuffled_keys_see_other_statistics_than_their_queries(make) -> None:
    assert group_difference(make(splits=2)) > 1e-3


@pytest.mark.parametrize("make", [moco, end_to_end])
def test_without_shuffling_keys_see_the_statistics_of_their_queries(make) -> None:
    assert group_difference(make(splits=2, shuffle=False)) < 1e-6


@pytest.mark.parametrize("splits", [1, 4])
def test_a_plain_permutation_changes_keys_only_where_there_are_sub_batches(splits: int) -> None:
    encoder = moco(splits=splits).key_encoder
    view = batch(16).views[0]
    order = torch.randperm(16)
    with torch.no_grad():
        keys = F.normalize(encoder(view), dim=1)
        moved = F.normalize(encoder(view[order]), dim=1)[order.argsort()]
    difference = float((keys - moved).abs().max())
    assert difference < 1e-4 if splits == 1 else difference > 1e-2


@pytest.mark.parametrize("make", [moco, end_to_end])
def test_shuffled_keys_come_back_in_the_order_of_the_images(make) -> None:
    method = make(splits=4)
    method.key_encoder.eval()  # without groups, so that only the order can differ
    view = batch().views[0]
    with torch.no_grad():
        expected = F.normalize(method.key_encoder(view), dim=1)
    torch.testing.assert_close(method.encode_keys(view), expected, atol=1e-5, rtol=1e-4)


def test_a_shuffled_batch_keeps_its_memory_format() -> None:
    method = moco(splits=2)
    formats = []
    method.key_encoder.register_forward_pre_hook(
        lambda _, x: formats.append(x[0].is_contiguous(memory_format=torch.channels_last))
    )
    view = batch().views[0]
    method.encode_keys(view)
    method.encode_keys(view.contiguous(memory_format=torch.channels_last))
    assert formats == [False, True]


@pytest.mark.parametrize(
    ("splits", "shuffle", "words"),
    [
        (8, True, "shuffling BN: on over 8 groups"),
        (8, False, "shuffling BN: off over 8 groups"),
        (1, True, "does nothing"),
        (1, False, "shuffling BN: off: batch norm sees one group"),
    ],
)
def test_notes_say_whether_shuffling_is_active(splits: int, shuffle: bool, words: str) -> None:
    assert words in "\n".join(moco(splits=splits, shuffle=shuffle).notes())
    assert words in "\n".join(end_to_end(splits=splits, shuffle=shuffle).notes())


def config(splits: int, parts: int = 1, *, batch: int = 256) -> PretrainConfig:
    pairs = {"ENCODER.BN_SPLITS": splits, "SOLVER.ACCUMULATE": parts, "SOLVER.BATCH": batch}
    words = [str(word) for pair in pairs.items() for word in pair]
    return load_config(None, ["SOLVER.MAX_ITER", "1", *words])


def test_a_run_keeps_its_groups_of_batch_norm_where_fewer_processes_go_on() -> None:
    each = {n: bn_splits_per_process(config(0), n, 8) for n in (8, 4, 2, 1, 16)}
    assert each == {8: 1, 4: 2, 2: 4, 1: 8, 16: 1}
    assert bn_splits_per_process(config(16), 4, 8) == 4


@pytest.mark.parametrize(
    ("splits", "processes", "parts", "each"),
    [(0, 1, 1, 1), (0, 4, 1, 1), (8, 1, 1, 8), (8, 2, 1, 4), (8, 8, 1, 1), (8, 2, 4, 4)],
)
def test_groups_of_batch_norm_are_shared_by_the_processes(
    splits: int, processes: int, parts: int, each: int
) -> None:
    assert bn_splits_per_process(config(splits, parts), processes) == each


def test_groups_of_batch_norm_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(InputError, match="BN_SPLITS 8 over 3 processes"):
        bn_splits_per_process(config(8, batch=240), 3)
    with pytest.raises(InputError, match="BN_SPLITS 8 over 4 processes.*ACCUMULATE 4.*of 16"):
        bn_splits_per_process(config(8, parts=4), 4)
