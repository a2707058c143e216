"""Frozen features: labelled sets as central views, and what an encoder makes of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from moco_det.foundation.errors import InputError
from pretrain import augment, data
from pretrain.encoders import Encoder
from pretrain.images import CorruptImage, Image, read_image

KINDS = ("pooled", "head")  # before the head, or the normalised embedding after it


def labelled_pair(
    train: str, test: str, *, keys: tuple[str, str] = ("train", "test")
) -> tuple[data.ImageList, data.ImageList]:
    """The images to learn from and to test on, which errors call by `keys`.

    Raises InputError for sets without labels and for sets of different classes.
    """
    pair = labelled(train, key=keys[0]), labelled(test, key=keys[1])
    only = [sorted(set(a.classes) - set(b.classes)) for a, b in (pair, pair[::-1])]
    if any(only):
        parts = [
            f"{_few(names)} only in {images.root}"
            for names, images in zip(only, pair, strict=True)
            if names
        ]
        raise InputError(f"{train} and {test} have different classes: {'; '.join(parts)}")
    return pair


def labelled(path: str, *, key: str) -> data.ImageList:
    """The images of a labelled set, which errors call by `key`."""
    images = data.list_images(path, key=key)
    if images.labels is None:
        raise InputError(
            f"{key} {images.root} has no class folders: a probe needs labels, one sub-folder per "
            "class or a text list of path<TAB>class"
        )
    return images


def _few(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def centre_views(images: data.ImageList, *, size: int, batch: int) -> Iterator[Tensor]:
    """Central views [n, S, S, 3] uint8 in the list's order; two batches are in memory at most.

    Raises InputError naming an image that does not open.
    """
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:

        def read(start: int) -> list[Future[Image]]:
            numbers = range(start, min(start + batch, len(images)))
            return [pool.submit(_centre_view, images.paths[i], size) for i in numbers]

        try:
            waiting = read(0)
            for start in range(0, len(images), batch):
                views, waiting = waiting, read(start + batch)
                yield torch.stack([torch.from_numpy(view.result()) for view in views])
        finally:
            pool.shutdown(cancel_futures=True)


def _centre_view(path: str, size: int) -> Image:
    try:
        return augment.centre_view(read_image(path), size)
    except CorruptImage as error:
        raise InputError(f"image {path}: {error}; mend or remove it") from error


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
    *,
    images: int,
    features: str = "pooled",
    bfloat16: bool = False,
) -> Tensor:
    """Features [N, C] in float32 of uint8 views, on the encoder's device; N is `images`.

    "pooled" is the trunk's output [N, width], "head" the embedding [N, dim] of length 1.
    """
    if features not in KINDS:
        raise InputError(f"features {features!r}: choose one of {', '.join(KINDS)}")
    device = next(encoder.parameters()).device
    out, done = None, 0
    with evaluating(encoder):
        for views in batches:
            pixels = augment.normalise(views.to(device, non_blocking=True))
            if features == "head":
                rows = F.normalize(encoder(pixels, bfloat16=bfloat16), dim=1)
            else:
                rows = encoder.features(pixels, bfloat16=bfloat16)
            if out is None:
                # In one piece from the start: joining a list at the end would need twice as much.
                out = torch.empty(images, rows.shape[1], device=device)
            out[done : done + len(rows)] = rows
            done += len(rows)
    if out is None or done != images:
        raise ValueError(f"{done} views where {images} were announced")
    if not bool(torch.isfinite(out).all()):
        raise InputError("the encoder's features are not finite: its weights are damaged")
    return out


def extract(
    encoder: Encoder,
    images: data.ImageList,
    *,
    size: int,
    batch: int = 128,
    features: str = "pooled",
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor]:
    """Features [N, C] and labels [N] of a labelled list, by central views of side `size`."""
    if images.labels is None:
        raise InputError(f"{images.root} has no class folders: a probe needs labels")
    views = tqdm(
        centre_views(images, size=size, batch=batch),
        total=-(-len(images) // batch),
        desc="features",
        unit="batch",
        mininterval=1,
        leave=False,
    )
    rows = embed(encoder, views, images=len(images), features=features, bfloat16=bfloat16)
    return rows, torch.from_numpy(images.labels).to(rows.device)


def fingerprint(images: data.ImageList) -> str:
    """sha256 (hex) over each image's path below the root, its class and its size in bytes.

    Equal wherever the same files lie; the pixels are not read.
    """
    root = images.root if os.path.isdir(images.root) else os.path.dirname(images.root)
    digest = hashlib.sha256(repr(images.classes).encode())
    numbers = tqdm(range(len(images)), desc="fingerprint", mininterval=1, delay=2, leave=False)
    for i in numbers:
        path = images.paths[i]
        try:
            size = os.stat(path).st_size
        except OSError as error:
            raise InputError(f"image {path}: {error.strerror}; mend or remove it") from error
        label = -1 if images.labels is None else int(images.labels[i])
        digest.update(repr((os.path.relpath(path, root or "."), label, size)).encode())
    return digest.hexdigest()
