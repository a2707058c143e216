"""What a folder holds, and two splits of what has none of its own."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from moco_det.data.catalog_names import absolute, coco_uri
from moco_det.data.image_files import IMAGE_SUFFIXES
from moco_det.data.splits import RULE, choose_test
from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import open_regular

HEAD = 4096  # bytes by which a file is recognised
HIDDEN = (".", "__MACOSX")
MOST = 50  # so many files of a kind are looked at, the largest first


@dataclass(frozen=True)
class FoundData:
    """The URIs of two splits and what to say of them, or `photos` without labels."""

    said: str
    uris: tuple[str, ...] = ()  # of what is trained and what is tested on
    photos: tuple[Path, ...] = ()


# Photographs that are not read, by the ending.
NOT_READ = (".heic", ".heif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".svg", ".mp4", ".mov")


@dataclass(frozen=True)
class Folder:
    """A folder's files, by their endings in small letters, hidden ones left out."""

    root: Path
    files: Mapping[str, Sequence[Path]]
    images: Sequence[Path]

    def of(self, *endings: str) -> list[Path]:
        return [file for ending in endings for file in self.files.get(ending, ())]

    @property
    def unread(self) -> str:
        """A clause on photographs and films of formats that are not read, empty without any."""
        counts = [f"{len(self.of(e))} {e} files" for e in NOT_READ if self.of(e)]
        return f"; {', '.join(counts)} are not read: convert them to .jpg" if counts else ""


def list_folder(root: Path, made: Path) -> Folder:
    """All regular files below `root`, but for those of the output folder `made`."""
    files: dict[str, list[Path]] = defaultdict(list)
    seen: set[str] = set()  # a link that leads back up must not be followed for ever
    for place, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(HIDDEN) and not made.is_relative_to(Path(place, name))
        )
        for name in sorted(names):
            file = os.path.join(place, name)
            ending = os.path.splitext(name)[1].lower()
            if not name.startswith(HIDDEN) and os.path.isfile(file):
                if ending in (*IMAGE_SUFFIXES, ".xml") and not _is_listable(file):
                    raise InputError(f"the name {ascii(file)} has no place in a list: rename it")
                files[ending].append(Path(file))
        seen.add(real)
    images = sorted(file for ending in IMAGE_SUFFIXES for file in files.get(ending, ()))
    return Folder(root, files, images)


def _is_listable(name: str) -> bool:
    """Whether a name is one line of UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return len(name.splitlines()) == 1


def head(file: Path) -> str:
    """How a file begins, nothing where it cannot be read."""
    try:
        with open_regular(file) as stream:
            return stream.read(HEAD).decode("utf-8-sig", errors="replace")
    except OSError:
        return ""


def largest(files: Sequence[Path]) -> list[Path]:
    """The largest MOST of them."""
    return sorted(files, key=lambda file: -file.stat().st_size)[:MOST]


def choose_below(labels: Mapping[str, Collection[str]], root: Path) -> set[str]:
    """`choose_test` by names below the root: a folder that was moved is split alike."""
    spellings: dict[str, list[str]] = defaultdict(list)  # of the same image
    for name in labels:
        spellings[os.path.relpath(os.path.join(root, name), root)].append(name)
    tested = choose_test({s: {*chain(*(labels[n] for n in of))} for s, of in spellings.items()})
    return {name for short in tested for name in spellings[short]}


def split_line(said: str, tested: Collection[str], labels: Collection[str], file: Path) -> str:
    """What is said of a split that the rule has made."""
    return (
        f"{said}: no split of its own, so {len(labels) - len(tested)} images are trained and "
        f"{len(tested)} tested on, {RULE}; written down in {file}"
    )


def json_file(made: Path, split: str) -> Path:
    """Where a split is written down."""
    return made / f"{made.name}_{split}.json"


def coco_uris(made: Path, train: str, test: str, images: Path) -> tuple[str, ...]:
    """The names of two splits that are written down."""
    return tuple(coco_uri(json_file(made, split), images) for split in (train, test))


def write_coco(
    content: Mapping[str, Any],
    labels: Mapping[str, Collection[str]],
    images: Path,
    made: Path,
    said: str,
) -> FoundData:
    """Both splits of one content, whose images have objects of the classes in `labels`."""
    tested = choose_below(labels, images)
    for split in ("train", "test"):
        rows = [x for x in content["images"] if (x["file_name"] in tested) == (split == "test")]
        ids = {row["id"] for row in rows}
        objects = [row for row in content["annotations"] if row["image_id"] in ids]
        part = {**content, "images": rows, "annotations": objects}
        write_text(json_file(made, split), json.dumps(part))
    said = split_line(said, tested, labels, json_file(made, "test"))
    return FoundData(said, coco_uris(made, "train", "test", absolute(images)))
