"""Which layout the data in a folder has, and the URIs of its two splits.

What no URI can name (YOLO labels, xml without ImageSets, one COCO json for both splits) is written
down in a folder of the caller's: links to the images and xml files with the lists of a VOC folder,
or COCO json files. The images themselves stay where they are.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path, PureWindowsPath

from moco_det.data.catalog_names import absolute, coco_uri, voc_uri
from moco_det.data.folder_files import (
    Folder,
    FoundData,
    head,
    largest,
    list_folder,
    write_coco,
)
from moco_det.data.image_files import coco_files, with_slashes
from moco_det.data.read_yolo import find_bare_yolo, find_yolo
from moco_det.data.splits import split_of
from moco_det.data.voc_links import find_xml
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import read_json, read_text

EXPECTED = (
    "one of annotations/instances_train.json + annotations/instances_val.json + images/ (COCO), "
    "Annotations/*.xml + JPEGImages/*.jpg (VOC), data.yaml + images/ + labels/*.txt (YOLO), or "
    "images alone"
)
# exports of other tools: the ending and the beginning of their files, how they become one of these
VIA = "open the project in VIA and choose Annotation, Export Annotations (COCO format)"
OTHERS = (
    (
        *("CVAT", ".xml", r"<annotations>"),
        "export the task again as 'COCO 1.0', or pip install datumaro and "
        "`datum convert -if cvat -i DIR -f coco -o NEW -- --save-media`",
    ),
    (
        *("LabelMe", ".json", r'"shapes"\s*:|"imagePath"\s*:'),
        "pip install labelme2coco and `labelme2coco DIR --train_split_rate 0.8`",
    ),
    ("VIA", ".json", r'"_via_|"regions"\s*:|"file_attributes"\s*:', VIA),
    ("VIA", ".csv", r"file_?name,file_size,file_attributes", VIA),
)


def find_data(directory: str | Path, made: Path) -> FoundData:
    """The data of a folder in any layout that is known; `made` is a folder to write what is needed.

    The same folder gives the same splits. Raises InputError, which names the tools that convert,
    for exports of CVAT, LabelMe and VIA.
    """
    root = absolute(directory)
    if root.suffix == ".json" and root.is_file():
        raise InputError(f"--data {root} is a file: name it as --coco {root} --images DIR")
    if root.suffix in (".yaml", ".yml") and root.is_file():  # as YOLO's own tools are told
        root = root.parent
    if not root.is_dir():
        raise InputError(f"--data {root} is no folder: name the one that holds your images")
    folder = list_folder(root, made)
    made = made / root.name
    for find in (_voc, find_yolo, _coco, find_xml, find_bare_yolo):
        found = find(folder, made)
        if found is not None:
            return replace(found, said=found.said + folder.unread)
    _refuse_others(folder)
    if not folder.images:
        raise InputError(
            f"--data {root} holds no images: what is read is {EXPECTED}{folder.unread}"
        )
    labels = [name for name in (".json", ".xml", ".csv", ".txt") if folder.of(name)]
    not_read = f"; its {', '.join(labels)} files are in no layout that is read" if labels else ""
    said = f"{len(folder.images)} photos without labels in {root}{not_read}{folder.unread}"
    return FoundData(said, photos=tuple(folder.images))


def split_coco(json_file: Path, images: Path, made: Path) -> FoundData:
    """One COCO json as two, by the rule."""
    content = read_json(json_file, "annotation file")
    try:
        labels: dict[str, set[str]] = {str(row["file_name"]): set() for row in content["images"]}
        names = {row["id"]: str(row["file_name"]) for row in content["images"]}
        for row in content["annotations"]:
            if row["image_id"] in names:
                labels[names[row["image_id"]]].add(str(row["category_id"]))
    except (KeyError, TypeError):
        raise InputError(f"annotation file {json_file} is not a COCO instances json") from None
    return write_coco(content, labels, images, made, f"{json_file} (COCO)")


def _refuse_others(folder: Folder) -> None:
    for tool, ending, begins, way in OTHERS:
        for file in largest(folder.of(ending)):
            if re.search(begins, head(file)):
                raise InputError(
                    f"{file} is an export of {tool}, which is not read: {way}; then give --data "
                    f"the new folder (expected: {EXPECTED})"
                )


def _voc(folder: Folder, made: Path) -> FoundData | None:
    """A VOC folder with ImageSets, at the top or below it."""
    lists = [f for f in folder.of(".txt") if f.parts[-3:-1] == ("ImageSets", "Main")]
    stems = tuple(f"_{file.stem}" for file in lists)
    lists = [file for file in lists if not file.stem.endswith(stems)]  # those of one class
    roots = sorted({file.parents[2] for file in lists})
    if len(roots) > 1:
        raise InputError(f"--data {folder.root} holds several VOC folders: name {roots[0]}")
    there = {file.stem: file for file in lists}
    # trainval holds val, so that the two cannot be trained and tested on
    pairs = (("trainval", "test"), ("train", "test"), ("train", "val"))
    for train, test in pairs:
        if train in there and test in there:
            uris = voc_uri(roots[0], train), voc_uri(roots[0], test)
            return FoundData(f"{roots[0]} (VOC): {train} is trained, {test} tested on", uris)
    if len(lists) > 1:
        raise InputError(
            f"{lists[0].parent} has no train and test or val: name two of {', '.join(there)} with "
            f"--voc {roots[0]} --train-split NAME --test-split NAME"
        )
    if lists:  # one list for both, as CVAT writes it
        words = read_text(lists[0], "split file").split("\n")
        return find_xml(folder, made, listed={Path(word.strip()).name for word in words})
    return None


def _coco(folder: Folder, made: Path) -> FoundData | None:
    keys = r'"(info|licenses|images|annotations|categories)"\s*:'
    files = [f for f in largest(folder.of(".json")) if re.search(keys, head(f))]
    files = [f for f in files if "instances" in f.name] or files
    texts = {file: read_text(file, "annotation file") for file in files}
    files = sorted(f for f, text in texts.items() if '"bbox"' in text and '"images"' in text)
    if not files:
        return None
    by_split: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_split[split_of(file.relative_to(folder.root))].append(file)
    test = next((split for split in ("test", "val") if split in by_split), "")
    wanted = [*by_split["train"], *by_split[test]] if test and by_split["train"] else files
    if len(wanted) > 2 or (len(wanted) == 2 and not (test and by_split["train"])):
        shown = ", ".join(str(file) for file in wanted[:6])
        raise InputError(
            f"--data {folder.root} holds several COCO files ({shown}): name the two by --coco "
            "TRAIN.json TEST.json --images TRAIN_DIR TEST_DIR"
        )
    if len(wanted) == 1:
        return split_coco(wanted[0], _image_folder(folder, wanted[0]), made)
    uris = tuple(coco_uri(file, _image_folder(folder, file)) for file in wanted)
    return FoundData(f"{wanted[0]} (COCO) is trained, {wanted[1]} tested on", uris)


def _image_folder(folder: Folder, file: Path) -> Path:
    """The folder in which the images lie that a COCO json names."""
    names = coco_files(file)
    if not names:
        raise InputError(f"annotation file {file} lists no images")
    names = names[:: max(1, len(names) // 20)]
    parents = {file.parent, folder.root}
    for image in folder.images:
        parents |= {p for p in image.parents if p.is_relative_to(folder.root)}
    split = split_of(file.relative_to(folder.root))

    def fits(parent: Path) -> tuple[int, bool, bool, int]:
        there = sum(os.path.isfile(parent / with_slashes(parent, name)) for name in names)
        same_split = split_of(parent.relative_to(folder.root)) == split
        return there, same_split, parent == file.parent, -len(parent.parts)

    best = max(sorted(parents), key=fits)
    if not fits(best)[0]:
        way_out = "put them there, or name their folder by --coco and --images"
        if PureWindowsPath(names[0]).name in {image.name for image in folder.images}:
            way_out = 'take the folders out of "file_name", the images are there without them'
        raise InputError(
            f"none of the images that {file} names is below {folder.root}, such as {names[0]}: "
            f"{way_out}"
        )
    return best
