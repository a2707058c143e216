"""What all probes share: labelled sets as central views, an encoder's features, accuracies."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from moco_det.data.records import listed
from moco_det.foundation.errors import InputError
from pretrain import augment, data
from pretrain.encoders import Encoder
from pretrain.images import CorruptImage, Image, read_image
from pretrain.jpeg import DAMAGED
from pretrain.probe.options import Conditions

logger = logging.getLogger(__name__)

TOP = 5  # classes that a probe names
Pair = tuple[data.ImageList, data.ImageList]  # to learn from, and to test on


def labelled_pair(train: str, test: str, *, keys: tuple[str, str] = ("train", "test")) -> Pair:
    """The images to learn from and to test on, which errors call by `keys`.

    Raises InputError for sets without labels, of different classes or of the same images.
    """
    pair = labelled(train, key=keys[0]), labelled(test, key=keys[1])
    known, asked = map(_places, pair)
    if asked <= known:
        raise InputError(
            f"{keys[1]} {test} has the images of {keys[0]} {train} and no others, so its accuracy "
            f"would say nothing: name images in {keys[1]} that are not learned from"
        )
    if shared := len(asked & known):
        logger.warning("%d of %d images of %s are in %s too", shared, len(asked), test, train)
    only = [sorted(set(a.classes) - set(b.classes)) for a, b in (pair, pair[::-1])]
    if any(only):
        parts = [
            f"{listed(names, 5)} only in {images.root}"
            for names, images in zip(only, pair, strict=True)
            if names
        ]
        raise InputError(f"{train} and {test} have different classes: {'; '.join(parts)}")
    return pair


def _places(images: data.ImageList) -> set[str]:
    """Where the images lie, links to folders followed."""
    real = cache(os.path.realpath)  # asked for every image it takes minutes of a large set
    return {os.path.join(real(folder), name) for folder, name in map(os.path.split, images.paths)}


def labelled(path: str, *, key: str) -> data.ImageList:
    """The images of a labelled set, which errors call by `key`."""
    images = data.list_images(path, key=key)
    if images.labels is None:
        raise InputError(
            f"{key} {images.root} has no class folders: a probe needs labels, one sub-folder per "
            "class or a text list of path<TAB>class"
        )
    return images


def labels_of(images: data.ImageList) -> Tensor:
    """The labels [N] of a labelled list."""
    assert images.labels is not None
    return torch.from_numpy(images.labels)


def centre_views(
    images: data.ImageList, *, size: int, batch: int, what: str = "features"
) -> Iterator[Tensor]:
    """Central views [n, S, S, 3] uint8 in the list's order; two batches are in memory at most.

    The progress on the screen is called `what`. Raises InputError naming an image that does not
    open.
    """
    read = partial(_centre_view, size=size)
    views = data.in_threads(read, images.paths, what=what, ahead=batch)
    while part := list(itertools.islice(views, batch)):
        yield torch.from_numpy(np.stack(part))


def _centre_view(path: str, size: int) -> Image:
    damaged: list[str] = []
    try:
        image = read_image(path, damaged=damaged)
    except CorruptImage as error:
        raise InputError(f"image {path}: {error}; fix or remove it") from error
    for one in damaged:
        logger.warning("image %s: %s", one, DAMAGED)
    return augment.centre_view(image, size)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode and without gradients, every part's own mode restored after."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


def embed(
    encoder: Encoder,
    batches: Iterable[Tensor],
    images: int,
    *,
    features: str = "pooled",
    bfloat16: bool = False,
) -> Tensor:
    """Features [N, C] in float32 of uint8 views, on the encoder's device; N is `images`.

    "pooled" is the trunk's output [N, width], "head" the embedding [N, dim] of length 1.
    """
    device = next(encoder.parameters()).device
    head = features == "head"
    # In one piece from the start: joining a list at the end would need twice as much.
    out, done = torch.empty(images, encoder.dim if head else encoder.width, device=device), 0
    with evaluating(encoder):
        for views in batches:
            pixels = augment.normalise(views.to(device, non_blocking=True))
            if head:
                rows = F.normalize(encoder(pixels, bfloat16=bfloat16), dim=1)
            else:
                rows = encoder.features(pixels, bfloat16=bfloat16)
            out[done : done + len(rows)] = rows
            done += len(rows)
    if not bool(torch.isfinite(out).all()):
        raise InputError("the encoder's features are not finite: its weights are damaged")
    return out


def extract(
    encoder: Encoder, images: data.ImageList, how: Conditions, features: str = "pooled"
) -> tuple[Tensor, Tensor]:
    """Features [N, C] and labels [N] of a labelled list, by central views."""
    views = centre_views(images, size=how.size, batch=how.batch)
    rows = embed(encoder, views, len(images), features=features, bfloat16=how.bfloat16)
    return rows, labels_of(images).to(rows.device)


def describe_pair(pair: Pair, *, uris: tuple[str, str]) -> dict[str, Any]:
    """The `dataset` of a row of results.jsonl."""
    described: dict[str, Any] = {"classes": list(pair[0].classes)}
    for part, images, uri in zip(("train", "test"), pair, uris, strict=True):
        described[part] = "/".join(Path(uri).resolve().parts[-2:])
        described[f"{part}_uri"] = uri
        described[f"{part}_fingerprint"] = fingerprint(images)
        described[f"{part}_images"] = len(images)
    return described


def fingerprint(images: data.ImageList) -> str:
    """sha256 (hex) over each image's path below the root, its class and its size in bytes.

    Equal wherever the same files lie; the pixels are not read.
    """
    root = images.root if os.path.isdir(images.root) else os.path.dirname(images.root)
    digest = hashlib.sha256(repr(images.classes).encode())
    paths = tqdm(images.paths, desc="fingerprint", mininterval=1, delay=2, leave=False)
    for path, label in zip(paths, labels_of(images).tolist(), strict=True):
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise InputError(f"image {path}: {error.strerror}; fix or remove it") from error
        digest.update(repr((os.path.relpath(path, root or "."), label, size)).encode())
    return digest.hexdigest()


class Accuracy(NamedTuple):
    """How often a probe is right, in percent.

    `top5` is None below five classes; `mean_class` weighs every class alike.
    """

    top1: float
    top5: float | None
    mean_class: float

    def __str__(self) -> str:
        return "  ".join(f"{k} {v:.2f}" for k, v in self._asdict().items() if v is not None)


def score(ranked: Tensor, labels: Tensor, *, classes: int) -> Accuracy:
    """Accuracy of class numbers [N, r], best first (r = min(5, classes)), against labels [N]."""
    hits = ranked == labels[:, None]  # N x r
    right = hits[:, 0].double()
    images = torch.bincount(labels, minlength=classes)
    per_class = torch.bincount(labels, weights=right, minlength=classes) / images
    return Accuracy(
        top1=100 * float(right.mean()),
        top5=100 * float(hits.any(dim=1).double().mean()) if classes >= TOP else None,
        mean_class=100 * float(per_class[images > 0].mean()),
    )
