from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pretrain import probe
from pretrain.config import load_config
from pretrain.errors import InputError
from pretrain.train import train

from .conftest import write_images

QUICK = Path(__file__).resolve().parents[2] / "configs" / "pretrain" / "quick" / "moco_v2_r18.yaml"


def naive_knn(
    bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, k: int, t: float
) -> list[int]:
    answers = []
    for q in F.normalize(queries, dim=1):
        sims = sorted(
            ((float(q @ b), int(y)) for b, y in zip(F.normalize(bank, dim=1), labels, strict=True)),
            reverse=True,
        )[:k]
        votes: dict[int, float] = {}
        for s, y in sims:
            votes[y] = votes.get(y, 0.0) + math.exp(s / t)
        answers.append(max(votes, key=lambda y: votes[y]))
    return answers


@pytest.mark.parametrize("k", [1, 5, 200])
def test_weighted_knn_equals_the_vote_written_out(k: int) -> None:
    rng = torch.Generator().manual_seed(0)
    bank, queries = (torch.randn(n, 6, generator=rng, dtype=torch.float64) for n in (40, 25))
    labels, truth = (torch.randint(0, 4, (n,), generator=rng) for n in (40, 25))
    expected = naive_knn(bank, labels, queries, k, 0.07)
    right = sum(a == b for a, b in zip(expected, truth.tolist(), strict=True))
    got = probe.weighted_knn(bank, labels, queries, truth, k=k)
    assert got == pytest.approx(100 * right / 25)


def test_knn_of_separate_clusters_is_perfect() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)
    features = torch.eye(3)[labels] + 0.05 * torch.randn(60, 3, generator=rng)
    assert probe.weighted_knn(features, labels, features, labels, k=10) == 100.0


def test_a_checkpoint_can_be_probed_on_folders(
    tiny: list[str], class_folders: Path, tmp_path: Path
) -> None:
    encoder = probe.load_encoder(train(load_config(QUICK, tiny)))
    accuracy = probe.knn_probe(encoder, str(class_folders), str(class_folders), size=32, k=1)
    assert accuracy == 100.0  # every image is its own nearest neighbour
    write_images(tmp_path / "other" / "bird", 2)
    with pytest.raises(InputError, match="different class folders"):
        probe.knn_probe(encoder, str(class_folders), str(tmp_path / "other"), size=32)
