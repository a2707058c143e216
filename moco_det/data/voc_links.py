"""VOC xml files without ImageSets, made a VOC folder of links."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from hashlib import sha256
from pathlib import Path

from moco_det.data.catalog_names import voc_uri
from moco_det.data.folder_files import MOST, Folder, FoundData, choose_below, head, split_line
from moco_det.data.splits import split_of
from moco_det.foundation.atomic import make_folder, write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_LABELS, read_bytes


def find_xml(folder: Folder, made: Path, listed: Collection[str] | None = None) -> FoundData | None:
    """VOC xml files beside or apart from their images, made a VOC folder of links."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for image in folder.images:
        by_stem[image.stem].append(image)
    pairs: dict[Path, Path] = {}
    for xml in folder.of(".xml"):
        if listed is None or xml.stem in listed:
            there = by_stem.get(xml.stem, ())
            nearest = min(there, key=lambda i: len({*i.parts} ^ {*xml.parts}), default=None)
            if nearest is not None:
                pairs[xml] = nearest
    if not any(re.search(r"<annotation[\s>]", head(xml)) for xml in list(pairs)[:MOST]):
        return None
    stems = [xml.stem for xml in pairs]
    unique = len(set(stems)) == len(stems)
    names = {xml: xml.stem for xml in pairs} if unique else _joined(pairs, folder.root)
    spaced = next((xml for xml in pairs if xml.stem != xml.stem.strip()), None)
    if spaced is not None:
        raise InputError(f"{str(spaced)!r}: a space at the end of a name: rename it and its image")
    parts: dict[str, list[str]] = defaultdict(list)
    for xml, name in names.items():
        parts[split_of(xml.relative_to(folder.root).parent)].append(name)
    test = next((split for split in ("test", "val") if split in parts), "")
    said = f"{folder.root} (VOC xml without ImageSets)"
    left = len(folder.images) - len(set(pairs.values()))
    if left and listed is None:
        said += f", {left} images without xml left out"
    if "train" in parts and test:
        lists = {"train": parts["train"], "test": parts[test]}
        said += f": train is trained, {test} tested on"
    else:
        labels = {name: _classes(xml) for xml, name in names.items()}
        tested = choose_below(labels, folder.root)
        lists = {"train": sorted(labels.keys() - tested), "test": sorted(tested)}
        said = split_line(said, tested, labels, made / "ImageSets" / "Main" / "test.txt")
    for link in [*made.glob("Annotations/*"), *made.glob("JPEGImages/*")]:
        link.unlink()  # of another call, whose images may have gone
    for xml, name in names.items():
        _link(xml, made / "Annotations" / f"{name}.xml")
        _link(pairs[xml], made / "JPEGImages" / f"{name}{pairs[xml].suffix}")
    for split, members in lists.items():
        write_text(made / "ImageSets" / "Main" / f"{split}.txt", "\n".join(members) + "\n")
    return FoundData(said, (voc_uri(made, "train"), voc_uri(made, "test")))


def _joined(files: Iterable[Path], root: Path) -> dict[Path, str]:
    """A name for each file by its path below the root; no two have the same."""
    names = {f: "_".join(f.relative_to(root).with_suffix("").parts) for f in files}
    counts = Counter(names.values())
    return {
        file: name if counts[name] == 1 else f"{name}_{sha256(bytes(file)).hexdigest()[:8]}"
        for file, name in names.items()
    }


def _classes(xml: Path) -> set[str]:
    try:
        tree = ET.fromstring(read_bytes(xml, "annotation", MOST_LABELS))
        return {(name.text or "").strip() for name in tree.iterfind("object/name")}
    except (ET.ParseError, InputError, ValueError, LookupError):  # its reader says so
        return set()


def _link(file: Path, link: Path) -> None:
    make_folder(link.parent)
    link.symlink_to(file)
