"""Listed images to WebDataset shards with an index, and an index for shards of others."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import webdataset
from tqdm import tqdm

from moco_det.foundation.atomic import new_folder, write_text
from moco_det.foundation.errors import InputError
from pretrain.data.listing import ImageList
from pretrain.data.shard_list import (
    IMAGE_FIELDS,
    INDEX,
    count_samples,
    is_local,
    list_shards,
    read_index,
)


def write_shards(
    images: ImageList, folder: str | Path, *, name: str, shard_mb: int, seed: int
) -> str:
    """Copy images, as they are and in random order, into `folder`; returns its DATA.PATH.

    A shard is closed once it holds `shard_mb` MiB. The folder appears when it is complete. Raises
    InputError where it holds something, and for an image that cannot be read or is of another
    format.
    """
    counts: Counter[str] = Counter()
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(images))
    with new_folder(folder) as partial:
        try:
            with webdataset.ShardWriter(
                str(partial / f"{name}-%06d.tar"),
                maxcount=len(images) + 1,
                maxsize=shard_mb * 2**20,
                verbose=0,
                encoder=False,
                mtime=0,  # the same images make the same bytes
            ) as writer:
                for i in tqdm(order, desc="writing shards", unit="image", mininterval=1):
                    writer.write(_sample(images, int(i)))
                    counts[os.path.basename(writer.fname)] += 1
            _write_index(partial, counts, images.classes or None)
        except OSError as error:
            raise InputError(f"cannot write shards to {folder}: {error.strerror}") from error
    last = max(counts).removesuffix(".tar").rpartition("-")[2]
    return str(Path(folder) / f"{name}-{{000000..{last}}}.tar")


def write_index(path: str) -> int:
    """Count the samples of local shards, write the index beside them; returns their sum.

    In an index that is there already, other shards and the names of the classes stay.
    """
    shards = list_shards(path, key="shards")
    remote = [url for url in shards.urls if not is_local(url)]
    if remote:
        raise InputError(f"{remote[0]} is no local shard: an index is written beside the files")
    counts: dict[str, dict[str, int]] = {}
    for url in tqdm(shards.urls, desc="counting samples", unit="shard", mininterval=1):
        counts.setdefault(os.path.dirname(url), {})[os.path.basename(url)] = count_samples(url)
    for folder, found in counts.items():
        before, classes = read_index(os.path.join(folder, INDEX), key="shards")
        _write_index(Path(folder), before | found, classes)
    return sum(sum(found.values()) for found in counts.values())


def _sample(images: ImageList, i: int) -> dict[str, str | bytes]:
    path = images.paths[i]
    field = os.path.splitext(path)[1][1:].lower()
    if field not in IMAGE_FIELDS:
        raise InputError(f"image {path}: shards hold {', '.join(IMAGE_FIELDS)} only")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"image {path}: {error.strerror}") from error
    sample: dict[str, str | bytes] = {"__key__": f"{i:09d}", field: content}
    if images.labels is not None:
        sample["cls"] = str(images.labels[i]).encode()
    return sample


def _write_index(folder: Path, counts: dict[str, int], classes: list[str] | None) -> None:
    content: dict[str, object] = {"shards": dict(sorted(counts.items()))}
    if classes is not None:
        content["classes"] = classes
    write_text(folder / INDEX, json.dumps(content, indent=1) + "\n")
