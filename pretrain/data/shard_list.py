"""WebDataset shards: tar files whose members `key.jpg` and `key.cls` make one sample."""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import webdataset
from tqdm import tqdm

from moco_det.data.text_files import read_json
from moco_det.foundation.errors import InputError

ENDINGS = (".tar", ".tar.gz", ".tgz")
IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")

# The file beside shards that says how many samples each holds, and the names of the classes:
# {"shards": {"name-000000.tar": 1000, ...}, "classes": ["cat", ...]}
INDEX = "shards.json"


class Encoded(NamedTuple):
    """One sample as stored; `fault` says why it is none."""

    name: str  # shard:key
    data: bytes
    cls: bytes | None
    fault: str


@dataclass(frozen=True)
class ShardList:
    """Where the shards are, and what is known about them without reading them."""

    path: str  # as given
    urls: list[str]
    counts: dict[str, int]  # samples by url, for those in an index
    classes: list[str] | None

    @property
    def images(self) -> int | None:
        """All their samples, None where an index does not tell."""
        if len(self.counts) < len(self.urls):
            return None
        return sum(self.counts[url] for url in self.urls)


def is_shards(path: str) -> bool:
    """Whether a DATA.PATH names tar files rather than images."""
    return path.endswith(ENDINGS) or path.startswith("pipe:")


def list_shards(path: str, *, key: str = "DATA.PATH") -> ShardList:
    """The shards of `DIR/name-{000000..000099}.tar`, `DIR/name-*.tar` or an address of webdataset.

    Raises InputError, which calls the path by `key`, where a local one is missing or an index is
    damaged.
    """
    try:
        urls = [
            url
            for part in webdataset.shardlists.expand_urls(path)
            for url in (sorted(glob.glob(part)) if is_local(part) and "*" in part else [part])
        ]
    except Exception as error:  # unbalanced braces, an environment variable that is not set
        raise InputError(f"{key} {path} cannot be expanded: {error}") from error
    if not urls:
        raise InputError(f"{key} {path}: no such shards")
    missing = [url for url in urls if is_local(url) and not os.path.isfile(url)]
    if missing:
        raise InputError(
            f"{key} {path}: {len(missing)} of {len(urls)} shards are missing, the first is "
            f"{missing[0]}"
        )
    if len(set(urls)) < len(urls):
        raise InputError(f"{key} {path} names a shard twice")
    counts: dict[str, int] = {}
    classes = []
    for folder in {os.path.dirname(url) for url in urls if is_local(url)}:
        found, names = read_index(os.path.join(folder, INDEX), key=key)
        counts |= {os.path.join(folder, name): count for name, count in found.items()}
        classes.append(names)
    kept = {url: counts[url] for url in urls if url in counts}
    agree = classes and all(names == classes[0] for names in classes)
    return ShardList(path, urls, kept, classes[0] if agree else None)


# A pipe reports a failed command as OSError, a key that comes twice is a ValueError.
DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError)


def read_shard(url: str) -> Iterator[Encoded]:
    """The samples of one shard in their order; raises InputError where it is damaged."""
    try:
        for sample in webdataset.tarfile_samples([{"url": url}]):
            yield _encoded(url, sample)
    except DAMAGE as error:
        reason = str(error.args[0]) if error.args else type(error).__name__
        raise InputError(
            f"shard {url} does not read to its end: {reason}; fetch it anew or leave it out"
        ) from error


def count_samples(url: str) -> int:
    """How many samples `read_shard` gives; a local file is not read but hopped through."""
    if not is_local(url):
        return sum(1 for _ in read_shard(url))
    try:
        with tarfile.open(url) as archive:
            names = tqdm(_names(archive), desc=f"counting {url}", unit="file", delay=5, leave=False)
            return sum(1 for _ in webdataset.tariterators.group_by_keys(names))
    except DAMAGE as error:
        raise InputError(f"shard {url} is damaged: {error}") from error


def _names(archive: tarfile.TarFile) -> Iterator[dict[str, Any]]:
    """The archive's members as webdataset passes them on, without their content."""
    while (member := archive.next()) is not None:
        # webdataset leaves out members named like __this__, or in such a folder.
        if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
            yield {"fname": member.name, "data": b"", "__url__": ""}


def _encoded(url: str, sample: dict[str, Any]) -> Encoded:
    name = f"{url}:{sample['__key__']}"
    fields = [field for field in sample if field.rpartition(".")[2] in IMAGE_FIELDS]
    if not fields:
        kinds = ", ".join(f".{kind}" for kind in IMAGE_FIELDS)
        return Encoded(name, b"", None, f"the sample has no image ({kinds})")
    return Encoded(name, sample[fields[0]], sample.get("cls"), "")


def is_local(url: str) -> bool:
    """Whether a shard is a file rather than an address or a command."""
    return not re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", url)


def read_index(path: str, *, key: str) -> tuple[dict[str, int], list[str] | None]:
    """Samples by shard and the classes that an index tells; nothing where there is none."""
    if not os.path.isfile(path):
        return {}, None
    content = read_json(Path(path), f"{key}: the index")
    about = content if isinstance(content, dict) else {}
    shards, classes = about.get("shards"), about.get("classes")
    if not isinstance(shards, dict) or not all(isinstance(n, int) for n in shards.values()):
        raise InputError(f'{key}: the index {path} has no "shards" with a number for each')
    if classes is not None and not (
        isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    ):
        raise InputError(f'{key}: "classes" of the index {path} is not a list of names')
    return shards, classes
