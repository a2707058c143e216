"""How good frozen features are: a weighted nearest-neighbour vote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from pretrain import augment, checkpoints, data
from pretrain.encoders import Encoder
from pretrain.errors import InputError


def weighted_knn(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    *,
    k: int = 200,
    temperature: float = 0.07,
) -> float:
    """Accuracy in percent of a vote of the k nearest training features, weighted exp(cos/T).

    Features [N, C] need not be normalised. InstDisc paper, Section 3.4.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    k = min(k, len(train))
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    right = 0
    for part, labels in zip(test.split(512), test_labels.split(512), strict=True):
        similarity, nearest = (part @ train.t()).topk(k, dim=1)  # n x k
        # Weights relative to the nearest one: the same vote, and no overflow.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = torch.zeros(len(part), classes, device=part.device, dtype=part.dtype)
        votes.scatter_add_(1, train_labels[nearest], weights)
        right += int((votes.argmax(dim=1) == labels).sum())
    return 100.0 * right / len(test)


@torch.no_grad()
def extract(
    encoder: Encoder, images: data.ImageList, *, size: int, batch: int = 128
) -> tuple[Tensor, Tensor]:
    """Pooled features [N, width] and labels [N] of a labelled list, by central views."""
    if images.labels is None:
        raise InputError(f"{images.root} has no class folders: kNN needs labels")
    device = next(encoder.parameters()).device
    encoder.eval()
    features = []
    for start in tqdm(range(0, len(images), batch), desc="features", mininterval=1):
        pixels = [
            augment.centre_view(_read(path), size) for path in images.paths[start : start + batch]
        ]
        stacked = torch.from_numpy(np.stack(pixels)).to(device)
        features.append(encoder.features(augment.normalise(stacked)))
    return torch.cat(features), torch.from_numpy(images.labels).to(device)


def _read(path: str) -> augment.Image:
    try:
        return data.read_image(path)
    except data.CorruptImage as error:
        raise InputError(f"image {path}: {error}") from error


def knn_probe(encoder: Encoder, train: str, test: str, *, size: int, k: int = 200) -> float:
    """kNN accuracy in percent of `encoder` from the folder `train` to the folder `test`."""
    train_images, test_images = data.list_images(train), data.list_images(test)
    if train_images.classes != test_images.classes:
        raise InputError(f"{train} and {test} have different class folders")
    return weighted_knn(
        *extract(encoder, train_images, size=size), *extract(encoder, test_images, size=size), k=k
    )


def load_encoder(path: Path) -> Encoder:
    """The kept encoder of a checkpoint.pth; its head is left as it was initialised."""
    content = checkpoints.read(path)
    encoder = Encoder(content["arch"], head="fc", dim=1)
    encoder.trunk.load_state_dict(content["encoder"])
    return encoder
