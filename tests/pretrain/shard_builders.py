"""Shards on disk for tests, and the source over them."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import torch
import webdataset

from moco_det.foundation.errors import InputError
from pretrain import augment, data

Members = list[tuple[str, bytes]]


def picture(value: int, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, np.full((40, 48, 3), value, np.uint8))[1].tobytes()


def write_tar(path: Path, members: Members) -> None:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_stream(folder: Path, sizes: list[int], *, index: bool = False) -> str:
    """Shards of so many gray images each, the value of image i being i; returns the DATA.PATH."""
    folder.mkdir(exist_ok=True)
    numbers = itertools.count()
    for shard, size in enumerate(sizes):
        with webdataset.TarWriter(str(folder / f"x-{shard:02d}.tar")) as writer:
            for i in itertools.islice(numbers, size):
                writer.write({"__key__": f"{i:04d}", "png": picture(i), "cls": str(i % 3)})
    if index:
        counts = {f"x-{shard:02d}.tar": size for shard, size in enumerate(sizes)}
        content = {"shards": counts, "classes": ["a", "b", "c"]}
        (folder / "shards.json").write_text(json.dumps(content))
    return str(folder / f"x-{{00..{len(sizes) - 1:02d}}}.tar")


def open_stream(
    path: str,
    *,
    images: int = 0,
    max_corrupt: float = 0.2,
    recipe: str = "moco_v2",
    views: int = 2,
) -> data.Source:
    keys = {"IMAGES": images, "SHUFFLE_BUFFER": 16, "MAX_CORRUPT": max_corrupt}
    spec = data.ViewSpec(augment.RECIPES[recipe], size=32, views=views, seed=5)
    args = data.DataArgs(PATH=path, **keys)  # type: ignore[arg-type]
    return data.open_data(args, spec, batch=1, device=torch.device("cpu"))


def error_of(loader: data.BatchLoader) -> str:
    """The text alone: a kept error keeps the loader, and its processes end in disorder."""
    try:
        list(loader)
    except InputError as error:
        return str(error)
    return ""
