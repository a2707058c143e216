"""WebDataset shards: tar files whose members `key.jpg` and `key.cls` make one sample.

A key ends at the first dot of a name, so that `key.seg.png` belongs to `key.jpg`. Where no member
of a key is `key.jpg`, each of its images is a sample: `cam03.0007.jpg` with `cam03.0007.cls`.

They are found, read, counted and written here, and so is the index beside them.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import webdataset
from tqdm import tqdm

from moco_det.data.image_files import IMAGE_SUFFIXES
from moco_det.foundation.atomic import new_folder, write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_IMAGE, read_json, read_regular
from pretrain.data.listing import ImageList

IMAGE_FIELDS = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)

# The file beside shards that says how many samples each holds, and the names of the classes:
# {"shards": {"name-000000.tar": 1000, ...}, "classes": ["cat", ...]}
INDEX = "shards.json"

# Allows shards that are what a shell command writes, webdataset's "pipe:..."; a config may come
# from anybody.
PIPES = "MOCO_DET_PIPES"
# ImageNet-22k in shards of a thousand has 14,000; each name takes a hundred bytes
MOST_SHARDS = 1_000_000

# What tarfile reads whole before the member that it belongs to: long names and attributes
READ_AHEAD = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
MOST_NAME = 1 << 20
BRACES = re.compile(r"\{(-?\d{1,40}\.\.-?\d{1,40})(?:\.\.-?\d+)?\}|([{},])")


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


def list_shards(path: str, *, key: str = "DATA.PATH") -> ShardList:
    """The shards of `DIR/name-{000000..000099}.tar`, `DIR/name-*.tar` or an address of webdataset.

    Raises InputError, which calls the path by `key`, where a local one is missing or an index is
    damaged.
    """
    named = _how_many(path)
    if named > MOST_SHARDS:
        raise InputError(
            f"{key} {path} names {named:,} shards, more than the {MOST_SHARDS:,} allowed: correct "
            "its braces"
        )
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
    commands = [url for url in urls if url.startswith("pipe:")]
    if commands and not os.environ.get(PIPES):
        raise InputError(
            f"{key} {commands[0]} is a command, which is not run unless you say so: set {PIPES}=1"
        )
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


def _how_many(path: str) -> int:
    """How many addresses a pattern stands for, at most, without writing them out."""
    total = 0
    for part in path.split("::"):
        levels = [[0, 1]]  # of each open brace: the alternatives before the last comma, the last's
        for range_, sign in BRACES.findall(part):
            if range_:
                first, last = map(int, range_.split(".."))
                levels[-1][1] *= abs(last - first) + 1
            elif sign == "{":
                levels.append([0, 1])
            elif len(levels) > 1:
                before, last_one = levels.pop()
                if sign == "}":
                    levels[-1][1] *= before + last_one
                else:
                    levels.append([before + last_one, 1])
        total += levels[0][1]
    return min(total, 10**18)  # a number of 5,000 digits cannot be shown


class Header(tarfile.TarInfo):
    """A member's header, refused before tarfile reads as much as it announces."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
        header = super().frombuf(buf, encoding, errors)
        most = MOST_NAME if header.type in READ_AHEAD else MOST_IMAGE
        if not 0 <= header.size <= most:
            raise ValueError(f"a member has {header.size:,} bytes, more than the {most:,} read")
        return header


def read_shard(url: str) -> Iterator[Encoded]:
    """The samples of one shard in their order; raises InputError where it is damaged."""
    try:
        stream = webdataset.gopen(url)
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=Header) as archive:
            for group in webdataset.tariterators.group_by_keys(_members(archive, content=True)):
                yield from _pictures(url, group)
    except Exception as error:  # a damaged archive can raise anything in tarfile
        raise _damage(url, error) from error


def count_samples(url: str) -> int:
    """How many samples `read_shard` gives; a local file is not read but hopped through."""
    if not is_local(url):
        return sum(1 for _ in read_shard(url))
    try:
        with tarfile.open(url, tarinfo=Header) as archive:
            members = _members(archive, content=False)
            seen = tqdm(members, desc=f"counting {url}", unit="file", delay=5, leave=False)
            groups = webdataset.tariterators.group_by_keys(seen)
            return sum(len(_pictures(url, group)) for group in groups)
    except Exception as error:
        raise _damage(url, error) from error


def _damage(url: str, error: Exception) -> InputError:
    # group_by_keys adds to the arguments of an error
    reason = error if isinstance(error, OSError) or not error.args else error.args[0]
    return InputError(
        f"shard {url} does not read to its end: {reason or type(error).__name__}; fetch it anew "
        "or leave it out"
    )


def _members(archive: tarfile.TarFile, *, content: bool) -> Iterator[dict[str, Any]]:
    """The files of an archive as `group_by_keys` takes them, which holds those of one key."""
    key, held = None, 0
    while (member := archive.next()) is not None:
        archive.members = []  # type: ignore[attr-defined]  # it keeps all that it has seen
        # webdataset leaves out members named like __this__, or in such a folder.
        if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name):
            continue
        before, key = key, webdataset.tariterators.base_plus_ext(member.name)[0] or key
        held = member.size + (held if key == before else 0)
        if not 0 <= member.size <= held <= MOST_IMAGE:  # a sparse file is larger than announced
            raise ValueError(f"a sample has {held:,} bytes, more than the {MOST_IMAGE:,} read")
        file = archive.extractfile(member) if content else None
        yield {"fname": member.name, "data": file.read() if file else b"", "__url__": ""}


def _pictures(url: str, group: dict[str, Any]) -> list[Encoded]:
    """The samples of the members of a key; one that says what is wrong where no image is there."""
    name = f"{url}:{group['__key__']}"
    stems = {field: field.rpartition(".") for field in group}
    fields = [field for field, (_, _, kind) in stems.items() if kind in IMAGE_FIELDS]
    if not fields:
        kinds = ", ".join(f".{kind}" for kind in IMAGE_FIELDS)
        return [Encoded(name, b"", None, f"the sample has no image ({kinds})")]
    plain = [field for field in fields if field in IMAGE_FIELDS][:1]
    samples = []
    for field in plain or fields:
        stem, dot, _ = stems[field]
        cls = group.get(f"{stem}{dot}cls", group.get("cls"))
        samples.append(Encoded(name + dot + stem, group[field], cls, ""))
    return samples


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
        content = read_regular(path, MOST_IMAGE)
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
