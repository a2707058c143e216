"""A vote of the nearest training features, weighted by likeness: no training, no tuning.

InstDisc paper (Wu et al. 2018), Section 3.4. Letters: N training rows, n rows of a part, C width.
"""

from __future__ import annotations

import logging
import os

import torch
from torch import Tensor
from tqdm import tqdm

from pretrain import data
from pretrain.encoders import Encoder
from pretrain.errors import InputError
from pretrain.probe.accuracy import TOP, Accuracy, score
from pretrain.probe.features import centre_views, embed, extract, labelled_pair

logger = logging.getLogger(__name__)

# Similarities are made in blocks of so many test rows by training rows: 32 MiB in float32. Beside
# the features themselves (1.28M x 2048 are 9.8 GiB) a vote needs that block, a norm for each row
# and the classes' votes of one block of test rows, whatever the size of the sets.
TEST_ROWS, TRAIN_ROWS = 512, 16384


def vote(
    train: Tensor, train_labels: Tensor, test: Tensor, *, classes: int, k: int, temperature: float
) -> Tensor:
    """The min(5, classes) classes [M, r] with most votes for each test row, best first.

    Each of the k nearest training rows (by cosine) votes for its class with weight exp(cos / T).
    Features [N, C] and [M, C] need not be normalised.
    """
    if k < 1 or temperature <= 0:
        raise InputError(f"k is {k} and the temperature {temperature:g}: both must be above 0")
    k = min(k, len(train))
    inverse = 1 / train.norm(dim=1).clamp_min(1e-12)  # N
    ranked = []
    blocks = range(0, len(train), TRAIN_ROWS)
    for part in tqdm(test.split(TEST_ROWS), desc="kNN", mininterval=1, delay=2, leave=False):
        part = torch.nn.functional.normalize(part, dim=1)
        best = part.new_empty(len(part), 0)
        labels = train_labels.new_empty(len(part), 0)
        for start in blocks:
            rows = slice(start, start + TRAIN_ROWS)
            similarity = (part @ train[rows].t()).mul_(inverse[rows])  # n x block
            near, at = similarity.topk(min(k, similarity.shape[1]), dim=1)
            best = torch.cat([best, near], dim=1)
            labels = torch.cat([labels, train_labels[rows][at]], dim=1)
            best, at = best.topk(min(k, best.shape[1]), dim=1)
            labels = labels.gather(1, at)
        # Weights relative to the nearest one: the same vote, and no overflow.
        weights = ((best - best[:, :1]) / temperature).exp()
        votes = part.new_zeros(len(part), classes).scatter_add_(1, labels, weights)
        ranked.append(votes.topk(min(TOP, classes), dim=1).indices)
    return torch.cat(ranked)


def weighted_knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.07,
) -> float:
    """Accuracy in percent of `vote`; of fewer than k training rows all vote."""
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    ranked = vote(train, train_labels, test, classes=classes, k=k, temperature=temperature)
    return score(ranked, test_labels, classes=classes).top1


def concerns(train: data.ImageList, *, k: int) -> list[str]:
    """What a reader of a kNN number over these training images must know."""
    assert train.labels is not None
    sizes = torch.bincount(torch.from_numpy(train.labels), minlength=len(train.classes))
    smallest = int(sizes.min())
    if len(train) <= k:
        return [f"k is {k} and there are {len(train)} training images: all of them vote"]
    if smallest < k:
        return [
            f"k is {k} and the smallest class, {train.classes[int(sizes.argmin())]}, has "
            f"{smallest} training images (the largest {int(sizes.max())}): other classes vote too"
        ]
    return []


def knn_accuracy(
    encoder: Encoder,
    train: data.ImageList,
    test: data.ImageList,
    *,
    size: int,
    k: int = 200,
    temperature: float = 0.07,
    features: str = "pooled",
    batch: int = 128,
    bfloat16: bool = False,
) -> Accuracy:
    """Accuracy of `vote` between two labelled lists, by central views of side `size`."""
    (known, known_labels), (asked, asked_labels) = (
        extract(encoder, images, size=size, batch=batch, features=features, bfloat16=bfloat16)
        for images in (train, test)
    )
    classes = len(train.classes)
    ranked = vote(known, known_labels, asked, classes=classes, k=k, temperature=temperature)
    return score(ranked, asked_labels, classes=classes)


def knn_probe(
    encoder: Encoder,
    train: str,
    test: str,
    *,
    size: int,
    k: int = 200,
    temperature: float = 0.07,
    features: str = "pooled",
) -> float:
    """kNN accuracy in percent of `encoder` from the folder `train` to the folder `test`."""
    known, asked = labelled_pair(train, test)
    for concern in concerns(known, k=k):
        logger.warning("kNN: %s", concern)
    return knn_accuracy(
        encoder, known, asked, size=size, k=k, temperature=temperature, features=features
    ).top1


class KnnMonitor:
    """kNN accuracy of an encoder in training, over two labelled sets that are decoded once.

    The central views of both stay in memory as uint8 (size * size * 3 bytes an image); sets that
    need more than half of the machine's memory for it are refused. Raises InputError for sets
    without labels or of different classes.
    """

    def __init__(
        self,
        train: str,
        test: str,
        *,
        size: int,
        k: int = 200,
        temperature: float = 0.07,
        features: str = "pooled",
        batch: int = 128,
        bfloat16: bool = False,
    ) -> None:
        known, asked = labelled_pair(train, test, keys=("KNN.TRAIN", "KNN.TEST"))
        _check_memory((len(known) + len(asked)) * size * size * 3, [train, test])
        for concern in concerns(known, k=k):
            logger.warning("kNN: %s", concern)
        self.classes = len(known.classes)
        self.k = k
        self.temperature = temperature
        self.features = features
        self.batch = batch
        self.bfloat16 = bfloat16
        self.train, self.test = (_decoded(images, size) for images in (known, asked))

    def __call__(self, encoder: Encoder) -> float:
        """Percent. The encoder's modes, its running statistics and torch's generator stay."""
        known, asked = (self._embed(encoder, views) for views, _ in (self.train, self.test))
        ranked = vote(
            known,
            self.train[1].to(known.device),
            asked,
            classes=self.classes,
            k=self.k,
            temperature=self.temperature,
        )
        return score(ranked.cpu(), self.test[1], classes=self.classes).top1

    def _embed(self, encoder: Encoder, views: Tensor) -> Tensor:
        batches = tqdm(
            views.split(self.batch), desc="kNN features", mininterval=1, delay=2, leave=False
        )
        return embed(
            encoder, batches, images=len(views), features=self.features, bfloat16=self.bfloat16
        )


def _decoded(images: data.ImageList, size: int) -> tuple[Tensor, Tensor]:
    """All central views [N, S, S, 3] uint8 and the labels [N] of a list."""
    assert images.labels is not None
    views = torch.empty(len(images), size, size, 3, dtype=torch.uint8)
    done = 0
    with tqdm(total=len(images), desc="reading for kNN", unit="image", mininterval=1) as bar:
        for part in centre_views(images, size=size, batch=256):
            views[done : done + len(part)] = part
            done += len(part)
            bar.update(len(part))
    return views, torch.from_numpy(images.labels)


def _check_memory(needed: int, sets: list[str]) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory / 2:
        raise InputError(
            f"kNN over {' and '.join(sets)} needs {needed / 2**30:.1f} GiB for its views and the "
            f"machine has {memory / 2**30:.1f}: lower KNN.SIZE, give a part of the images (a text "
            "list of path<TAB>class will do), or set KNN.EVERY 0 and use tools/probe.py"
        )
