"""A vote of the nearest training features, weighted by likeness: no training, no tuning.

InstDisc paper (Wu et al. 2018), Section 3.4. Letters: N training rows, n rows of a part, C width.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from moco_det.foundation.declared import at_least, one_of, within
from moco_det.foundation.errors import InputError
from moco_det.foundation.stopping import until_asked
from pretrain import data
from pretrain.encoders import Encoder
from pretrain.probe.features import TOP, centre_views, embed, labelled, labelled_pair, labels_of

logger = logging.getLogger(__name__)

# Similarities are made in blocks of so many test rows by training rows: 32 MiB in float32. Beside
# the features themselves (1.28M x 2048 are 9.8 GiB) a vote needs that block, a norm for each row
# and the classes' votes of one block of test rows, whatever the size of the sets.
TEST_ROWS, TRAIN_ROWS = 512, 16384
# Neighbours of the monitor where none are asked for: InstDisc's, and those of few pictures.
MANY, FEW = 200, 10


@dataclass(frozen=True)
class KnnArgs:
    """KNN.*: nearest-neighbour accuracy before the first step, after the last and in between.

    The labelled folder TRAIN votes for TEST; without TEST each image of TRAIN is voted for by the
    others.
    """

    TRAIN: str = ""
    TEST: str = ""
    EVERY: float = at_least(0, 0.0)  # epochs, a part of one too; 0 is the start and the end alone
    K: int = at_least(0, 0)  # neighbours; 0 is 200, and 10 where a class has fewer than 200 images
    T: float = at_least(1e-6, 0.07)
    # pooled or head: before the head, or the normalised embedding
    FEATURES: str = one_of(("pooled", "head"), "pooled")
    SIZE: int = at_least(0, 0)  # of the central view; 0 takes AUGMENT.SIZE
    GOAL: float = within(0, 100, 0.0)  # percent at which the run ends; 0 is none

    def __post_init__(self) -> None:
        if (self.EVERY > 0 or self.TEST) and not self.TRAIN:
            asked = f"KNN.EVERY is {self.EVERY:g}" if self.EVERY else f"KNN.TEST is {self.TEST}"
            raise InputError(
                f"{asked} and KNN.TRAIN is empty: name a folder with one sub-folder per class there"
            )
        if self.GOAL > 0 and not self.EVERY:
            raise InputError(
                f"KNN.GOAL is {self.GOAL:g} and KNN.EVERY 0 measures at the start and the end "
                "alone: set KNN.EVERY to the epochs between two measurements, such as 5"
            )


def vote(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor | None,
    *,
    classes: int,
    k: int,
    temperature: float,
) -> Tensor:
    """The min(5, classes) classes [M, r] with most votes for each test row, best first.

    Each of the k nearest training rows (by cosine) votes for its class with weight exp(cos / T).
    Features [N, C] and [M, C] need not be normalised. Without `test` each training row is asked
    for, and the others vote.
    """
    alone = test is None
    test = train if test is None else test
    k = min(k, len(train) - alone)
    inverse = 1 / train.norm(dim=1).clamp_min(1e-12)  # N
    ranked = []
    blocks = range(0, len(train), TRAIN_ROWS)
    parts = tqdm(test.split(TEST_ROWS), desc="kNN", mininterval=1, delay=2, leave=False)
    for number, part in enumerate(until_asked(parts)):
        part = torch.nn.functional.normalize(part, dim=1)
        best = part.new_empty(len(part), 0)
        labels = train_labels.new_empty(len(part), 0)
        for start in blocks:
            rows = slice(start, start + TRAIN_ROWS)
            similarity = (part @ train[rows].t()).mul_(inverse[rows])  # n x block
            if alone:
                similarity.diagonal(number * TEST_ROWS - start).fill_(-torch.inf)
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


def concerns(train: data.ImageList, *, k: int) -> list[str]:
    """What a reader of a kNN number over these training images must know."""
    sizes = torch.bincount(labels_of(train), minlength=len(train.classes))
    smallest = int(sizes.min())
    if len(train) <= k:
        return [f"k is {k} and there are {len(train)} training images: all of them vote"]
    if smallest < k:
        return [
            f"k is {k} and the smallest class, {train.classes[int(sizes.argmin())]}, has "
            f"{smallest} training images (the largest {int(sizes.max())}): other classes vote too"
        ]
    return []


class KnnMonitor:
    """Which labelled images their neighbours name right, of an encoder in training.

    The central views are decoded once and stay in memory as uint8 (size * size * 3 bytes each);
    sets that need more than half of the machine's memory for it are refused. Raises InputError for
    sets without labels, of one class or of different classes.
    """

    def __init__(
        self, args: KnnArgs, *, size: int, batch: int = 128, bfloat16: bool = False
    ) -> None:
        train, test = args.TRAIN, args.TEST
        if test:
            known, asked = labelled_pair(train, test, keys=("KNN.TRAIN", "KNN.TEST"))
        else:
            known = asked = labelled(train, key="KNN.TRAIN")
        counts = np.bincount(labels_of(known).numpy())
        classes = len(known.classes)
        if classes < 2:
            raise InputError(f"KNN.TRAIN {train} has one class: kNN needs two or more")
        images = len(known) + len(asked) if test else len(known)
        _check_memory(images * size * size * 3, f"{train} and {test}" if test else train)
        for concern in concerns(known, k=args.K) if args.K else ():
            logger.warning("kNN: %s", concern)
        self.k = args.K or (MANY if counts.min() >= MANY else FEW)
        logger.info(
            "kNN: %d images, %.1f %% of them in the largest of %d classes, each by the %d nearest "
            "of %s",
            len(asked),
            100 * np.bincount(labels_of(asked).numpy()).max() / len(asked),
            classes,
            self.k,
            f"{len(known)} in {train}" if test else "the others",
        )
        self.batch = batch
        self.embed = partial(embed, features=args.FEATURES, bfloat16=bfloat16)
        self.vote = partial(vote, classes=classes, k=self.k, temperature=args.T)
        self.train = _decoded(known, size)
        self.test = _decoded(asked, size) if test else None

    def __call__(self, encoder: Encoder) -> Tensor:
        """One flag per image. The encoder's modes, running statistics and torch's RNG stay.

        Raises `Stopped` between two batches where a signal asks for it.
        """
        known = self._features(encoder, self.train[0])
        asked = None if self.test is None else self._features(encoder, self.test[0])
        ranked = self.vote(known, self.train[1].to(known.device), asked)
        return ranked[:, 0].cpu() == (self.test or self.train)[1]

    def _features(self, encoder: Encoder, views: Tensor) -> Tensor:
        parts = views.split(self.batch)
        batches = tqdm(parts, desc="kNN features", mininterval=1, delay=2, leave=False)
        return self.embed(encoder, until_asked(batches), len(views))


def _decoded(images: data.ImageList, size: int) -> tuple[Tensor, Tensor]:
    """All central views [N, S, S, 3] uint8 and the labels [N] of a list."""
    views = torch.empty(len(images), size, size, 3, dtype=torch.uint8)
    parts = centre_views(images, size=size, batch=256, what="reading for kNN")
    for own, part in zip(views.split(256), parts, strict=True):
        own.copy_(part)
    return views, labels_of(images)


def _check_memory(needed: int, sets: str) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory / 2:
        raise InputError(
            f"kNN over {sets} needs {needed / 2**30:.1f} GiB for its views and the "
            f"machine has {memory / 2**30:.1f}: lower KNN.SIZE, give a part of the images (a text "
            "list of path<TAB>class will do), or leave KNN.TRAIN empty and use moco-det probe"
        )
