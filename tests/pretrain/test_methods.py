"""MoCo, end-to-end and supervised; what all methods have in common; the methods from a config."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from moco_det.foundation.errors import InputError
from pretrain import checkpoints
from pretrain.build import build_method, method_name
from pretrain.config import VIEWS, load_config
from pretrain.encoders import ARCHITECTURES, Encoder
from pretrain.losses import info_nce
from pretrain.methods.base import Batch, Method, feature_std
from pretrain.methods.supervised import Supervised
from tests.pretrain.small_methods import batch, end_to_end, forward, moco, similarities
from tests.pretrain.small_trunk import SmallTrunk


@pytest.fixture(autouse=True)
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "resnet18", SmallTrunk)


def tiny_config(*pairs: str, accumulate: int = 1):
    sizes = {
        "ENCODER.ARCH": "resnet18",
        "ENCODER.DIM": 8,
        "ENCODER.BN_SPLITS": 2,
        "MOCO.K": 12,
        "MEMORY_BANK.K": 10,
        "INST_DISC.K": 6,
        "SOLVER.BATCH": 8,
        "SOLVER.MAX_ITER": 1,
        "SOLVER.ACCUMULATE": accumulate,
    }
    return load_config(None, [*(str(x) for pair in sizes.items() for x in pair), *pairs])


# every method and every choice within one, as KEY VALUE pairs
EVERY = {
    "moco": ["METHOD", "moco"],
    "end_to_end": ["METHOD", "end_to_end"],
    "end_to_end shared": ["METHOD", "end_to_end", "END_TO_END.SHARED", "True"],
    "memory_bank": ["METHOD", "memory_bank"],
    "nce": ["METHOD", "inst_disc", "INST_DISC.PROXIMAL", "3", "INST_DISC.Z_MOMENTUM", "0.9"],
    "softmax": ["METHOD", "inst_disc", "INST_DISC.LOSS", "softmax", "BANK.DTYPE", "float16"],
    "parametric": ["METHOD", "inst_disc", "INST_DISC.LOSS", "parametric"],
    "supervised": ["METHOD", "supervised"],
}


def build(name: str, **known: object) -> Method:
    torch.manual_seed(0)
    given = {"images": 30, "classes": 3, "bfloat16": False, **known}
    accumulate = given.pop("accumulate", 1)
    cfg = tiny_config(*EVERY[name], accumulate=accumulate)  # type: ignore[arg-type]
    return build_method(cfg, **given).train()  # type: ignore[arg-type]


def test_every_method_is_here() -> None:
    assert {pairs[1] for pairs in EVERY.values()} == set(VIEWS)


@pytest.mark.parametrize("name", EVERY)
def test_a_step_of_every_method(name: str) -> None:
    """One step leaves gradients where they belong and state that a state_dict brings back."""
    method = build(name)
    data = batch(views=method.views)
    assert method.views == VIEWS[EVERY[name][1]]
    out = forward(method, data)
    out.loss.backward()
    method.after_step(data.indices, out.features)
    assert math.isfinite(out.loss.item()) and math.isfinite(method.chance_loss)
    assert out.features.shape[0] == 8 and not out.features.requires_grad
    assert not any(value.requires_grad or value.dim() for value in out.metrics.values())
    assert 0 <= float(out.metrics["accuracy"]) <= 100
    trained = {n for n, p in method.named_parameters() if p.grad is not None}
    assert trained == {n for n, p in method.named_parameters() if p.requires_grad}
    assert all(math.isfinite(value) for value in method.gauges().values())
    assert all(isinstance(line, str) for line in method.notes())
    other = build(name)
    other.load_state_dict(method.state_dict())
    torch.manual_seed(1)
    expected = forward(method, data).loss
    torch.manual_seed(1)
    assert torch.equal(forward(other, data).loss, expected)


@pytest.mark.parametrize("name", EVERY)
def test_loss_and_features_are_float32_under_bfloat16_and_near_those_of_float32(name: str) -> None:
    outcomes = []
    for bfloat16 in (False, True):
        method = build(name, bfloat16=bfloat16)
        torch.manual_seed(1)
        outcomes.append(forward(method, batch(views=method.views)))
    assert outcomes[1].loss.dtype == outcomes[1].features.dtype == torch.float32
    cosines = F.cosine_similarity(outcomes[0].features, outcomes[1].features)
    assert float(cosines.min()) > 0.999


@pytest.mark.parametrize("name", sorted(EVERY.keys() - {"end_to_end", "end_to_end shared"}))
def test_a_share_in_parts_gives_the_loss_the_gradient_and_the_features_of_the_whole(
    name: str,
) -> None:
    found = []
    for parts in (1, 2):
        method = build(name, accumulate=parts)
        data = batch(views=method.views)
        torch.manual_seed(1)
        keys = method.prepare(data)
        size = 8 // parts
        outs = []
        for start in range(0, 8, size):
            stop = start + size
            out = method(data.part(start, stop), None if keys is None else keys[start:stop])
            (out.loss / parts).backward()
            outs.append(out)
        method.after_step(data.indices, torch.cat([out.features for out in outs]))
        found.append((method, sum(out.loss.item() for out in outs) / parts))
    (one, loss), (two, loss_of_parts) = found
    assert loss_of_parts == pytest.approx(loss, rel=1e-5)
    for (n, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        if a.grad is not None:
            assert float((a.grad - b.grad).norm()) <= 1e-4 * float(a.grad.norm()) + 1e-7, n
    for (n, a), (_, b) in zip(one.named_buffers(), two.named_buffers(), strict=True):
        if not n.startswith("encoder."):  # running statistics take more steps
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=n)


# MoCo


def test_key_encoder_starts_as_a_copy_and_has_no_gradient() -> None:
    method = moco()
    for q, k in zip(method.encoder.parameters(), method.key_encoder.parameters(), strict=True):
        assert torch.equal(q, k) and q is not k
        assert q.requires_grad and not k.requires_grad


def test_keys_get_no_gradient_and_queries_do() -> None:
    method = moco()
    forward(method, batch()).loss.backward()
    assert all(p.grad is None for p in method.key_encoder.parameters())
    assert all(p.grad is not None for p in method.encoder.parameters())


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999, 1.0])
def test_momentum_update_is_m_k_plus_one_minus_m_q(momentum: float) -> None:
    method = moco(momentum=momentum)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(torch.randn_like(p))
    pairs = zip(method.encoder.parameters(), method.key_encoder.parameters(), strict=True)
    expected = [momentum * k.double() + (1 - momentum) * q.double() for q, k in pairs]
    method.update_key_encoder()
    for k, wanted in zip(method.key_encoder.parameters(), expected, strict=True):
        torch.testing.assert_close(k.double(), wanted, atol=1e-6, rtol=1e-6)


def test_batch_norm_statistics_of_the_key_encoder_are_its_own() -> None:
    method = moco(momentum=0.5)
    with torch.no_grad():
        method.encoder.trunk.bn1.running_mean.fill_(3.0)
    method.update_key_encoder()
    assert not method.key_encoder.trunk.bn1.running_mean.any()


def test_the_order_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    method, calls = moco(), []
    for name, module in [("q", method.encoder), ("k", method.key_encoder)]:
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    update = method.update_key_encoder
    monkeypatch.setattr(method, "update_key_encoder", lambda: (calls.append("update"), update()))
    write = method.dictionary.write
    monkeypatch.setattr(method.dictionary, "write", lambda *a: (calls.append("write"), write(*a)))
    out = forward(method, batch())
    out.loss.backward()
    method.after_step(batch().indices, out.features)
    assert calls == ["update", "k", "q", "write"]


def test_moco_is_algorithm_1_of_the_paper() -> None:
    """Three steps against the pseudocode, whose momentum update stands at the end of a step."""
    method = moco(splits=1, momentum=0.9, size=16)
    f_q, f_k = copy.deepcopy(method.encoder), copy.deepcopy(method.key_encoder)
    queue = method.dictionary.read().clone()
    optimizers = [torch.optim.SGD(e.parameters(), lr=0.05) for e in (method.encoder, f_q)]
    data = batch()
    for step in range(3):
        out = forward(method, data)
        optimizers[0].zero_grad()
        out.loss.backward()
        optimizers[0].step()
        method.after_step(data.indices, out.features)

        q = F.normalize(f_q(data.views[0]), dim=1)
        with torch.no_grad():
            k = F.normalize(f_k(data.views[1]), dim=1)
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ queue.t()], dim=1)
        loss = F.cross_entropy(logits / 0.1, torch.zeros(8, dtype=torch.long))
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        with torch.no_grad():
            for p_q, p_k in zip(f_q.parameters(), f_k.parameters(), strict=True):
                p_k.copy_(0.9 * p_k + 0.1 * p_q)
        start = 8 * step % 16
        queue[start : start + 8] = k
        assert out.loss.item() == pytest.approx(loss.item(), rel=1e-4)


def test_the_positive_is_never_among_its_own_negatives() -> None:
    method = moco(size=8)
    before = method.dictionary.read().clone()
    out = forward(method, batch())
    assert torch.equal(method.dictionary.read(), before)
    out.loss.backward()
    method.after_step(batch().indices, out.features)
    assert torch.equal(method.dictionary.read(), out.features)
    assert float(method.dictionary.fill) == 1.0


def test_enqueued_keys_are_the_normalised_keys_in_the_order_of_the_images() -> None:
    method = moco(splits=1, momentum=1.0, size=8)
    data = batch()
    with torch.no_grad():
        expected = F.normalize(method.key_encoder(data.views[1]), dim=1)
    method.after_step(data.indices, forward(method, data).features)
    torch.testing.assert_close(method.dictionary.read(), expected, atol=1e-5, rtol=1e-4)


# End-to-end


@pytest.mark.parametrize("shared", [False, True])
def test_end_to_end_is_info_nce_with_the_other_keys_and_gradient_on_both_sides(
    shared: bool,
) -> None:
    method, data = end_to_end(shared=shared), batch()
    reference = copy.deepcopy(method)
    out = forward(method, data)
    out.loss.backward()

    encoder = reference.encoder if shared else reference.key_encoder
    q = F.normalize(reference.encoder(data.views[0]), dim=1)
    k = F.normalize(encoder(data.views[1]), dim=1)
    others = torch.stack([torch.cat([k[:i], k[i + 1 :]]) for i in range(8)])  # 8 x 7 x C
    loss = info_nce(*similarities(q, k, others), 0.1)
    loss.backward()
    torch.testing.assert_close(out.loss, loss, rtol=1e-4, atol=1e-5)
    for a, b in zip(method.parameters(), reference.parameters(), strict=True):
        assert float((a.grad - b.grad).norm()) <= 1e-3 * float(b.grad.norm()) + 1e-6
    assert (method.key_encoder is None) == shared
    assert method.dictionary_size == 7
    assert method.chance_loss == pytest.approx(math.log(8))


def test_the_two_encoders_of_end_to_end_start_equal_and_part() -> None:
    method, data = end_to_end(), batch()
    assert method.key_encoder is not None
    first = method.encoder.trunk.conv1.weight, method.key_encoder.trunk.conv1.weight
    assert torch.equal(*first)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05)
    forward(method, data).loss.backward()
    optimizer.step()
    assert not torch.equal(*first)


# What is watched, kept and refused


def test_moco_learns_to_tell_a_few_images_apart() -> None:
    method, data = moco(splits=1, size=4), batch(4)
    optimizer = torch.optim.SGD(method.encoder.parameters(), lr=0.05)
    losses = []
    for _ in range(6):
        out = forward(method, Batch((data.views[0], data.views[0]), data.indices))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < losses[0]


def test_metrics_of_contrastive_methods_have_the_same_names() -> None:
    names = {"accuracy", "positive_similarity", "negative_similarity", "feature_std"}
    for name in ("moco", "end_to_end", "memory_bank", "softmax"):
        method = build(name)
        assert set(forward(method, batch(views=method.views)).metrics) == names
    assert set(forward(build("nce"), batch()).metrics) == {*names, "proximal"}
    assert moco().chance_loss == pytest.approx(math.log(13))
    assert moco().dictionary_size == 12


def test_metrics_are_what_their_names_say() -> None:
    method, data = end_to_end(), batch()
    metrics = forward(copy.deepcopy(method), data).metrics
    with torch.no_grad():
        q, k = (
            F.normalize(encoder(view), dim=1)
            for encoder, view in zip((method.encoder, method.key_encoder), data.views, strict=True)
        )
    s = q @ k.t()
    off = [float(s[i, j]) for i in range(8) for j in range(8) if i != j]
    assert float(metrics["positive_similarity"]) == pytest.approx(float(s.diag().mean()), abs=1e-5)
    assert float(metrics["negative_similarity"]) == pytest.approx(sum(off) / 56, abs=1e-5)
    right = sum(int(s[i].argmax()) == i for i in range(8))
    assert float(metrics["accuracy"]) == pytest.approx(100 * right / 8)


def test_feature_std_is_one_for_random_directions_and_zero_when_collapsed() -> None:
    rng = torch.Generator().manual_seed(0)
    spread = F.normalize(torch.randn(4096, 64, generator=rng), dim=1)
    assert float(feature_std(spread)) == pytest.approx(1.0, abs=0.02)
    assert float(feature_std(spread[:1].expand(32, 64))) == pytest.approx(0.0, abs=1e-6)


def test_supervised_loss_is_cross_entropy_of_the_logits() -> None:
    torch.manual_seed(0)
    method = Supervised(Encoder("resnet18", head="fc", dim=3))
    data = batch(4, views=1)
    out = forward(method, data)
    scores = method.encoder(data.views[0])
    torch.testing.assert_close(out.loss, F.cross_entropy(scores, data.labels))
    assert set(out.metrics) == {"accuracy", "feature_std"}
    assert method.dictionary_size is None


def test_a_checkpoint_has_the_query_trunk_without_head() -> None:
    method = moco()
    with torch.no_grad():
        nn.init.zeros_(method.encoder.trunk.conv1.weight)
    state = checkpoints.pack(method, load_config(None, ["SOLVER.MAX_ITER", "1"]), {})["encoder"]
    assert not state["conv1.weight"].any()
    assert not any(name.startswith(("fc", "head")) for name in state)
    assert all(value.is_contiguous() for value in state.values())


def test_warnings_of_moco_are_those_of_its_queue() -> None:
    assert any("MOCO.K" in line for line in moco(size=12).warnings(batch=8, images=10))
    assert moco(size=12, momentum=0.999).warnings(batch=8, images=1000) == []


@pytest.mark.parametrize("classes", [None, 1])
def test_supervised_without_labels_is_refused(classes: int | None) -> None:
    with pytest.raises(InputError, match="METHOD supervised needs"):
        build("supervised", classes=classes)


@pytest.mark.parametrize("name", ["memory_bank", "nce", "softmax", "parametric"])
def test_a_stream_without_numbers_is_refused_where_each_image_has_a_row(name: str) -> None:
    with pytest.raises(InputError, match="have no numbers: give a folder or a list"):
        build(name, images=None)


def test_a_stream_without_numbers_will_do_for_the_others() -> None:
    for name in ("moco", "end_to_end", "supervised"):
        assert build(name, images=None).name in ("moco_v1", "end_to_end", "supervised")


@pytest.mark.parametrize(
    ("head", "recipe", "name"),
    [("fc", "moco_v1", "moco_v1"), ("mlp", "moco_v2", "moco_v2"), ("mlp", "moco_v1", "moco")],
)
def test_method_name_is_by_head_and_augmentation(head: str, recipe: str, name: str) -> None:
    pairs = ["ENCODER.HEAD", head, "AUGMENT.RECIPE", recipe, "SOLVER.MAX_ITER", "1"]
    assert method_name(load_config(None, pairs)) == name


def test_a_part_of_a_batch_cuts_everything() -> None:
    data = batch(8)
    part = data.part(2, 5)
    assert torch.equal(part.views[1], data.views[1][2:5])
    assert part.indices.tolist() == [2, 3, 4] and part.labels.tolist() == [2, 0, 1]
    assert Batch(data.views, data.indices).part(0, 1).labels is None
