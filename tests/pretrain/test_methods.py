from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pretrain.config import CHOICES, load_config
from pretrain.dictionaries import Queue
from pretrain.encoders import Encoder, SplitBatchNorm2d
from pretrain.errors import InputError
from pretrain.methods import (
    METHODS,
    VIEWS,
    Batch,
    MoCo,
    Supervised,
    build_method,
    feature_std,
    method_name,
)


def moco(*, splits: int = 2, shuffle: bool = True, momentum: float = 0.9, size: int = 12) -> MoCo:
    torch.manual_seed(0)
    return MoCo(
        encoder=Encoder("resnet18", head="mlp", dim=8, bn_splits=splits),
        dictionary=Queue(8, size),
        momentum=momentum,
        temperature=0.1,
        shuffle=shuffle,
    ).train()


def batch(n: int = 8) -> Batch:
    rng = torch.Generator().manual_seed(1)
    a, b = (torch.randn(n, 3, 32, 32, generator=rng) for _ in range(2))
    return Batch((a, b), torch.arange(n))


def test_choices_of_the_config_are_what_exists() -> None:
    assert set(CHOICES["METHOD"]) == set(METHODS) == set(VIEWS)


def test_key_encoder_starts_as_a_copy_and_has_no_gradient() -> None:
    method = moco()
    for q, k in zip(method.encoder.parameters(), method.key_encoder.parameters(), strict=True):
        assert torch.equal(q, k) and q is not k
        assert q.requires_grad and not k.requires_grad


def test_keys_get_no_gradient_and_queries_do() -> None:
    method = moco()
    method.loss(batch())[0].backward()
    assert all(p.grad is None for p in method.key_encoder.parameters())
    assert all(p.grad is not None for p in method.encoder.parameters())


def test_momentum_update_is_m_k_plus_one_minus_m_q() -> None:
    method = moco(momentum=0.9)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(torch.randn_like(p))
    expected = [
        0.9 * k + 0.1 * q
        for q, k in zip(method.encoder.parameters(), method.key_encoder.parameters(), strict=True)
    ]
    method.update_key_encoder()
    for k, wanted in zip(method.key_encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(k, wanted)


def test_momentum_update_comes_before_the_keys_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    method, calls = moco(), []
    for name, module in [("q", method.encoder), ("k", method.key_encoder)]:
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    update = method.update_key_encoder
    monkeypatch.setattr(method, "update_key_encoder", lambda: (calls.append("update"), update()))
    write = method.dictionary.write
    monkeypatch.setattr(method.dictionary, "write", lambda *a: (calls.append("write"), write(*a)))
    method.loss(batch())[0].backward()
    method.after_step()
    assert calls == ["q", "update", "k", "write"]


def test_the_positive_is_never_among_its_own_negatives() -> None:
    method = moco(size=8)
    before = method.dictionary.read().clone()
    loss, _ = method.loss(batch())
    assert torch.equal(method.dictionary.read(), before)
    loss.backward()
    method.after_step()
    assert not torch.equal(method.dictionary.read(), before)
    assert float(method.dictionary.fill) == 1.0


def test_enqueued_keys_are_the_normalised_keys_in_the_order_of_the_images() -> None:
    method = moco(splits=1, momentum=1.0, size=8)
    data = batch()
    with torch.no_grad():
        expected = F.normalize(method.key_encoder(data.views[1]), dim=1)
    method.loss(data)
    method.after_step()
    torch.testing.assert_close(method.dictionary.read(), expected, atol=1e-5, rtol=1e-4)


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


def group_difference(method: MoCo) -> float:
    """How far query and key sub-batch statistics differ when both views are the same images."""
    q_seen, k_seen = first_norm_groups(method.encoder), first_norm_groups(method.key_encoder)
    view = batch().views[0]
    method.loss(Batch((view, view), torch.arange(len(view))))
    pairs = zip(q_seen[0], k_seen[0], strict=True)
    return max(float((q - k).abs().max()) for q, k in pairs)


def test_shuffled_keys_see_other_statistics_than_their_queries() -> None:
    assert group_difference(moco(splits=2)) > 1e-3


def test_without_shuffling_keys_see_the_statistics_of_their_queries() -> None:
    assert group_difference(moco(splits=2, shuffle=False)) < 1e-6


def test_a_permutation_without_sub_batches_changes_no_statistics() -> None:
    assert group_difference(moco(splits=1)) < 1e-6


def test_moco_learns_to_tell_a_few_images_apart() -> None:
    method, data = moco(splits=1, size=4), batch(4)
    optimizer = torch.optim.SGD(method.encoder.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        loss, _ = method.loss(Batch((data.views[0], data.views[0]), data.indices))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_metrics_are_bounded_and_detached() -> None:
    method = moco()
    _, metrics = method.loss(batch())
    assert set(metrics) == {
        "accuracy",
        "positive_similarity",
        "negative_similarity",
        "feature_std",
    }
    assert not any(value.requires_grad for value in metrics.values())
    assert 0 <= float(metrics["accuracy"]) <= 100
    assert -1 <= float(metrics["positive_similarity"]) <= 1
    assert method.chance_loss == pytest.approx(math.log(13))


def test_feature_std_is_one_for_random_directions_and_zero_when_collapsed() -> None:
    rng = torch.Generator().manual_seed(0)
    spread = F.normalize(torch.randn(4096, 64, generator=rng), dim=1)
    assert float(feature_std(spread)) == pytest.approx(1.0, abs=0.02)
    assert float(feature_std(spread[:1].expand(32, 64))) == pytest.approx(0.0, abs=1e-6)


def test_supervised_loss_is_cross_entropy_of_the_logits() -> None:
    torch.manual_seed(0)
    method = Supervised(encoder=Encoder("resnet18", head="fc", dim=3), classes=3)
    data = batch(4)
    labels = torch.tensor([0, 1, 2, 1])
    loss, metrics = method.loss(Batch(data.views[:1], data.indices, labels))
    scores = method.encoder(data.views[0])
    torch.testing.assert_close(loss, F.cross_entropy(scores, labels))
    assert set(metrics) == {"accuracy", "feature_std"}


def test_encoder_state_is_the_query_trunk_without_head() -> None:
    method = moco()
    with torch.no_grad():
        nn.init.zeros_(method.encoder.trunk.conv1.weight)
    state = method.encoder_state()
    assert not state["conv1.weight"].any()
    assert not any(name.startswith(("fc", "head")) for name in state)
    assert all(value.is_contiguous() for value in state.values())


def test_supervised_without_labels_is_refused() -> None:
    cfg = load_config(None, ["METHOD", "supervised", "SOLVER.MAX_ITER", "1"])
    for classes in (None, 1):
        with pytest.raises(InputError, match="METHOD supervised needs"):
            build_method(cfg, classes=classes, bfloat16=False)


@pytest.mark.parametrize(
    ("head", "recipe", "name"),
    [("fc", "moco_v1", "moco_v1"), ("mlp", "moco_v2", "moco_v2"), ("mlp", "moco_v1", "moco")],
)
def test_method_name_is_by_head_and_augmentation(head: str, recipe: str, name: str) -> None:
    pairs = ["ENCODER.HEAD", head, "AUGMENT.RECIPE", recipe, "SOLVER.MAX_ITER", "1"]
    assert method_name(load_config(None, pairs)) == name
