"""The rules by which images are divided: into training and testing, and into folds of a share."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath

from moco_det.foundation.errors import InputError

# One image in so many is tested on; the seed is part of the rule, so that all runs share a split.
SHARE, SEED = 5, 0
RULE = f"one image in {SHARE} by the sha256 of its name, seed {SEED}"
WORDS = {"train": "train", "training": "train", "trainval": "train"}
WORDS |= {"val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}


def choose_test(labels: Mapping[str, Collection[str]]) -> set[str]:
    """The names of the images to test on, given the classes of the objects of each image.

    One in SHARE of those with objects and of those without, by a hash of the name; the first image
    of each class stays in training. Raises InputError where two images with objects are not there.
    """
    ranked = sorted(labels, key=lambda name: hashlib.sha256(f"{SEED} {name}".encode()).digest())
    seen: set[str] = set()
    free: list[str] = []  # with objects, and not needed in training for a class
    for name in ranked:
        if labels[name] and seen.issuperset(labels[name]):
            free.append(name)
        seen |= set(labels[name])
    objects = sum(map(bool, labels.values()))
    if not free:
        raise InputError(
            f"{objects} of {len(labels)} images have objects, which is too few to set one aside "
            "for testing: each class needs an image to train on; label more images"
        )
    empty = [name for name in ranked if not labels[name]]
    tested = {*free[: max(1, objects // SHARE)], *empty[: len(empty) // SHARE]}
    # a.jpg and a.png are one picture
    trained = {os.path.splitext(name)[0] for name in labels.keys() - tested}
    return {name for name in tested if os.path.splitext(name)[0] not in trained} or tested


def fold_of(files: Sequence[str], options: Mapping[str, str]) -> list[int]:
    """The places, rising, of the images that a data set's options percent and fold choose.

    Without percent all. Files are shuffled by the sha256 of their names without folder and ending,
    the same everywhere; folds are cut from it one after another, and where a shuffle is used up
    from the next, so of `percent` the first 100 / percent folds share no image.
    """
    if "percent" not in options or not files:
        return list(range(len(files)))
    count = max(1, round(len(files) * float(options["percent"]) / 100))
    shuffle, fold = divmod(int(options.get("fold", 0)), len(files) // count)

    def rank(place: int) -> bytes:
        stem = os.path.splitext(os.path.basename(files[place]))[0]
        return hashlib.sha256(f"{SEED} {shuffle} ".encode() + os.fsencode(stem)).digest()

    ranked = sorted(range(len(files)), key=rank)
    return sorted(ranked[fold * count : (fold + 1) * count])


def split_of(path: PurePath) -> str:
    """train, val or test, as the deepest part of a path says that has such a word; else ""."""
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in WORDS:
                return WORDS[word]
    return ""
