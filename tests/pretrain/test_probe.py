"""The nearest-neighbour vote: against the vote written out, by blocks, and while training."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moco_det.foundation.errors import InputError
from pretrain import augment, data, encoders
from pretrain.encoders import Encoder
from pretrain.images import read_image
from pretrain.probe import features, knn
from pretrain.probe.features import extract, score
from pretrain.probe.knn import KnnArgs, KnnMonitor
from pretrain.probe.options import Conditions, KnnOptions
from pretrain.probe.protocols import measure
from pretrain.probe.weights import random_start

from .conftest import write_images
from .small_trunk import SmallTrunk


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    monkeypatch.setitem(encoders.ARCHITECTURES, "small", SmallTrunk)
    return random_start("small", seed=0).encoder


@pytest.fixture
def two_sets(class_folders: Path, tmp_path: Path) -> tuple[str, str]:
    """The class folders, and five other images in each of the two classes."""
    for seed, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "test" / name, 5, seed=10 + seed)
    return str(class_folders), str(tmp_path / "test")


def knn_probe(encoder: Encoder, train: str, test: str, **options: Any) -> float:
    """Top-1 in percent of `encoder`'s neighbours from the folder `train` to the folder `test`."""
    start = replace(random_start("small", seed=0), encoder=encoder)
    pair = features.labelled_pair(train, test)
    return measure(KnnOptions(**options), start, pair, Conditions(32)).accuracy.top1


def naive_votes(
    bank: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, k: int, t: float
) -> list[dict[int, float]]:
    """For each query the weight of each class among its k nearest, one number at a time."""
    answers = []
    for q in F.normalize(queries, dim=1):
        sims = sorted(
            ((float(q @ b), int(y)) for b, y in zip(F.normalize(bank, dim=1), labels, strict=True)),
            reverse=True,
        )[:k]
        votes: dict[int, float] = {}
        for s, y in sims:
            votes[y] = votes.get(y, 0.0) + math.exp(s / t)
        answers.append(votes)
    return answers


def numbers(count: int, width: int, seed: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=rng, dtype=torch.float64)


def classes_of(count: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 5, 200])
@pytest.mark.parametrize("t", [0.07, 1.0])
def test_the_vote_equals_the_vote_written_out(k: int, t: float) -> None:
    bank, queries = numbers(40, 6, 0), 100 * numbers(25, 6, 1)
    labels, truth = classes_of(40, 4, 2), classes_of(25, 4, 3)
    expected = naive_votes(bank, labels, queries, k, t)
    ranked = knn.vote(bank, labels, queries, classes=4, k=k, temperature=t)
    for votes, order in zip(expected, ranked.tolist(), strict=True):
        named = sorted(votes, key=lambda y: -votes[y])
        assert order[: len(named)] == named
    right = sum(max(v, key=lambda y: v[y]) == y for v, y in zip(expected, truth, strict=True))
    assert score(ranked, truth, classes=4).top1 == pytest.approx(100 * right / 25)


@pytest.mark.parametrize("k", [1, 6, 50])
def test_the_vote_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    bank, labels, queries = numbers(61, 8, 0), classes_of(61, 7, 1), numbers(23, 8, 2)
    whole = knn.vote(bank, labels, queries, classes=7, k=k, temperature=0.07)
    monkeypatch.setattr(knn, "TEST_ROWS", 5)
    monkeypatch.setattr(knn, "TRAIN_ROWS", 4)
    assert torch.equal(whole, knn.vote(bank, labels, queries, classes=7, k=k, temperature=0.07))


@pytest.mark.parametrize("k", [1, 6, 200])
@pytest.mark.parametrize("blocks", [(512, 16384), (5, 4)])
def test_leaving_one_out_is_a_vote_of_all_the_others(
    monkeypatch: pytest.MonkeyPatch, k: int, blocks: tuple[int, int]
) -> None:
    monkeypatch.setattr(knn, "TEST_ROWS", blocks[0])
    monkeypatch.setattr(knn, "TRAIN_ROWS", blocks[1])
    bank, labels = numbers(31, 6, 0), classes_of(31, 4, 1)
    ranked = knn.vote(bank, labels, None, classes=4, k=k, temperature=0.2)
    for i, order in enumerate(ranked.tolist()):
        others = torch.arange(31) != i
        (votes,) = naive_votes(bank[others], labels[others], bank[i : i + 1], k, 0.2)
        named = sorted(votes, key=lambda y: -votes[y])
        assert order[: len(named)] == named


def test_no_similarity_is_held_beyond_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a vote needs beside the features is bounded whatever the size of the sets."""
    monkeypatch.setattr(knn, "TEST_ROWS", 8)
    monkeypatch.setattr(knn, "TRAIN_ROWS", 16)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            # Of a view nothing new is held: `t()` of the features and the like.
            if isinstance(out, torch.Tensor) and out._base is None:
                largest = max(largest, out.numel())
            return out

    bank, labels, queries = numbers(500, 4, 0), classes_of(500, 3, 1), numbers(200, 4, 2)
    with Watch():
        knn.vote(bank, labels, queries, classes=3, k=5, temperature=0.07)
    # The norms and the ranked classes have one row per image; a block has 8 x 16 numbers.
    assert largest <= 600


def test_knn_of_separate_clusters_is_perfect() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)
    rows = torch.eye(3)[labels] + 0.05 * torch.randn(60, 3, generator=rng)
    ranked = knn.vote(rows, labels, rows, classes=3, k=10, temperature=0.07)
    assert torch.equal(ranked[:, 0], labels)


def test_accuracies_by_hand() -> None:
    ranked = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [5, 4, 3, 2, 1], [1, 0, 2, 3, 4]])
    labels = torch.tensor([0, 1, 0, 1])
    got = score(ranked, labels, classes=6)
    # Right first: rows 0 and 3. Within five: all but row 2. Class 0: 1 of 2, class 1: 1 of 2.
    assert got == (50.0, 75.0, 50.0)
    # Class 0 is right in 3 of 3 images, class 1 in 0 of 1: the mean of classes is 50, not 75.
    uneven = score(torch.zeros(4, 2, dtype=torch.long), torch.tensor([0, 0, 0, 1]), classes=2)
    assert uneven.top1 == 75.0 and uneven.top5 is None and uneven.mean_class == 50.0


def test_every_image_is_its_own_nearest_neighbour(encoder: Encoder, class_folders: Path) -> None:
    start = replace(random_start("small", seed=0), encoder=encoder)
    images = data.list_images(str(class_folders))
    found = measure(KnnOptions(k=1), start, (images, images), Conditions(32))
    assert found.accuracy.top1 == 100.0


def test_a_set_is_not_tested_on_itself(
    class_folders: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "link").symlink_to(class_folders)
    files = sorted(class_folders.glob("*/*.jpg"))
    listed = tmp_path / "list.txt"
    lines = [f"{file}\t{file.parent.name}\n" for file in files]
    listed.write_text("".join(lines[::2]))
    train = str(class_folders)
    for test in (train, f"{train}/", str(tmp_path / "link"), str(listed)):
        with pytest.raises(InputError, match=r"test .* has the images of train .* and no others"):
            features.labelled_pair(train, test)
        with pytest.raises(InputError, match=r"KNN.TEST .* has the images of KNN.TRAIN"):
            KnnMonitor(KnnArgs(TRAIN=train, TEST=test), size=32)
    features.labelled_pair(str(listed), train)
    assert "12 of 24 images of" in caplog.text


def test_features_are_those_of_one_image_at_a_time(encoder: Encoder, class_folders: Path) -> None:
    images = data.list_images(str(class_folders))
    pooled, labels = extract(encoder, images, Conditions(32, 7))
    head, _ = extract(encoder, images, Conditions(32, 7), "head")
    encoder.eval()
    for i in (0, 6, 7, 23):
        view = augment.centre_view(read_image(images.paths[i]), 32)
        pixels = augment.normalise(torch.from_numpy(view)[None])
        with torch.no_grad():
            alone, embedded = encoder.features(pixels)[0], F.normalize(encoder(pixels))[0]
        torch.testing.assert_close(pooled[i], alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(head[i], embedded, rtol=1e-5, atol=1e-6)
    assert images.labels is not None
    assert np.array_equal(labels.numpy(), images.labels)


def test_the_monitor_gives_the_probe_s_number(encoder: Encoder, two_sets: tuple[str, str]) -> None:
    monitor = KnnMonitor(KnnArgs(*two_sets, K=5, FEATURES="head"), size=32, batch=4)
    expected = knn_probe(encoder, *two_sets, k=5, features="head")
    assert 100 * monitor(encoder).double().mean() == pytest.approx(expected)
    assert torch.equal(monitor(encoder), monitor(encoder))


def test_one_set_alone_is_voted_for_by_its_other_images(
    encoder: Encoder, class_folders: Path
) -> None:
    monitor = KnnMonitor(KnnArgs(str(class_folders), K=3), size=32)
    rows, labels = extract(encoder, data.list_images(str(class_folders)), Conditions(32))
    for i, right in enumerate(monitor(encoder).tolist()):
        others = torch.arange(24) != i
        (votes,) = naive_votes(rows[others], labels[others], rows[i : i + 1], 3, 0.07)
        assert right == (max(votes, key=lambda y: votes[y]) == labels[i])


@pytest.mark.parametrize("smallest, k", [(200, 200), (199, 10)])
def test_few_pictures_of_a_class_have_few_neighbours(
    smallest: int, k: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, 1)
    names = ["cat"] * smallest + ["dog"] * 201
    (tmp_path / "set.txt").write_text("".join(f"{tmp_path}/000.jpg\t{name}\n" for name in names))
    caplog.set_level("INFO")
    path = str(tmp_path / "set.txt")
    assert KnnMonitor(KnnArgs(path), size=32).k == k
    assert f"each by the {k} nearest of the others" in caplog.text
    assert KnnMonitor(KnnArgs(path, K=25), size=32).k == 25


def test_the_monitor_leaves_training_as_it_was(encoder: Encoder, two_sets: tuple[str, str]) -> None:
    monitor = KnnMonitor(KnnArgs(*two_sets, K=5), size=32)
    encoder.train()
    encoder.trunk.bn1.eval()  # a mode of its own must come back, too
    modes = [part.training for part in encoder.modules()]
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    random = torch.get_rng_state()
    monitor(encoder)
    assert [part.training for part in encoder.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())


def test_the_monitor_keeps_modes_where_it_fails(
    encoder: Encoder, two_sets: tuple[str, str]
) -> None:
    monitor = KnnMonitor(KnnArgs(*two_sets, K=5), size=32)
    encoder.train()
    with torch.no_grad():
        encoder.trunk.conv2.weight[0, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match="features are not finite"):
        monitor(encoder)
    assert encoder.training and encoder.trunk.training


def test_views_beyond_the_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch, two_sets: tuple[str, str]
) -> None:
    sizes = {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 1024}
    monkeypatch.setattr("os.sysconf", lambda name: sizes[name])
    with pytest.raises(InputError, match="lower KNN.SIZE"):
        KnnMonitor(KnnArgs(*two_sets), size=64)


def test_sets_that_cannot_be_probed_are_refused(class_folders: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", 2)
    for name in ("bird", "dog"):
        write_images(tmp_path / "other" / name, 2)
    with pytest.raises(InputError, match=r"KNN\.TEST .*flat has no class folders"):
        KnnMonitor(KnnArgs(str(class_folders), str(tmp_path / "flat")), size=32)
    with pytest.raises(InputError, match=r"cat only in \S*images\S*; bird only in \S*other"):
        KnnMonitor(KnnArgs(str(class_folders), str(tmp_path / "other")), size=32)
    write_images(tmp_path / "one" / "cat", 2)
    with pytest.raises(InputError, match=r"KNN\.TRAIN .*one has one class: kNN needs two"):
        KnnMonitor(KnnArgs(str(tmp_path / "one")), size=32)
    with pytest.raises(InputError, match=r"KNN\.TRAIN .*gone does not exist"):
        KnnMonitor(KnnArgs(str(tmp_path / "gone"), str(class_folders)), size=32)


def test_an_image_that_does_not_open_is_named(
    encoder: Encoder, class_folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(class_folders, tmp_path / "broken")
    damaged = tmp_path / "broken" / "dog" / "003.jpg"
    damaged.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"image .*dog/003\.jpg: .*fix or remove it"):
        knn_probe(encoder, str(tmp_path / "broken"), str(class_folders))


def test_the_reader_is_told_of_too_few_images(class_folders: Path) -> None:
    images = data.list_images(str(class_folders))  # 12 of each class
    assert knn.concerns(images, k=12) == []
    assert "the smallest class, cat, has 12" in knn.concerns(images, k=13)[0]
    assert "all of them vote" in knn.concerns(images, k=24)[0]


def test_a_fingerprint_is_of_the_files_and_not_of_their_place(
    class_folders: Path, tmp_path: Path
) -> None:
    shutil.copytree(class_folders, tmp_path / "copy")
    prints = [
        features.fingerprint(data.list_images(str(path)))
        for path in (class_folders, tmp_path / "copy")
    ]
    assert prints[0] == prints[1]
    (tmp_path / "copy" / "cat" / "000.jpg").rename(tmp_path / "copy" / "dog" / "100.jpg")
    moved = features.fingerprint(data.list_images(str(tmp_path / "copy")))
    (tmp_path / "copy" / "dog" / "100.jpg").write_bytes(b"other size")
    resized = features.fingerprint(data.list_images(str(tmp_path / "copy")))
    assert len({prints[0], moved, resized}) == 3


def test_views_come_in_the_list_s_order(class_folders: Path) -> None:
    images = data.list_images(str(class_folders))
    parts = list(features.centre_views(images, size=32, batch=5))
    assert [len(part) for part in parts] == [5, 5, 5, 5, 4]
    expected = [augment.centre_view(read_image(path), 32) for path in images.paths]
    assert np.array_equal(torch.cat(parts).numpy(), np.stack(expected))
