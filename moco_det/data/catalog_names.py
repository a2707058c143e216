"""How a data set is named in a yaml or on a command line.

    voc://DIR?split=train                a folder in VOC layout; &metric=2007 for 11-point AP
    coco://FILE.json?images=DIR          a COCO instances json and its folder of images

Of either &percent=1&fold=0 takes one percent of the images, by `moco_det.data.splits.fold_of`.
In DIR and FILE the characters % ? & # are written %25 %3F %26 %23; `voc_uri` and `coco_uri` do so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

from moco_det.foundation.errors import InputError

# scheme -> its form, and its options, of which the first must be given
URIS = {
    "voc": ("voc://DIR?split=train", ("split", "metric", "percent", "fold")),
    "coco": ("coco://FILE.json?images=DIR", ("images", "percent", "fold")),
}
MOST_FOLDS = 1000
FORMS = ", ".join(form for form, _ in URIS.values()) + (
    ", coco_2017_train, coco_2017_val, coco_2014_train, coco_2014_val, voc_2007_trainval, "
    "voc_2007_test, voc_2012_trainval, ..."
)

# name -> (json, images) and name -> (folder, split), below $DETECTRON2_DATASETS
BUILTIN_COCO = {
    f"coco_{year}_{split}": (f"coco/annotations/instances_{files}.json", f"coco/{images}")
    for year, split, files, images in (
        ("2014", "train", "train2014", "train2014"),
        ("2014", "val", "val2014", "val2014"),
        ("2014", "minival", "minival2014", "val2014"),
        ("2014", "valminusminival", "valminusminival2014", "val2014"),
        ("2017", "train", "train2017", "train2017"),
        ("2017", "val", "val2017", "val2017"),
        ("2017", "val_100", "val2017_100", "val2017"),
    )
}
BUILTIN_VOC = {
    f"voc_{year}_{split}": (f"VOC{year}", split)
    for year, splits in (("2007", "trainval train val test"), ("2012", "trainval train val"))
    for split in splits.split()
}


def absolute(path: str | Path) -> Path:
    """The path with ~ replaced, made absolute; links stay."""
    return Path(os.path.abspath(os.path.expanduser(path)))


def voc_uri(directory: str | Path, split: str) -> str:
    """The name of one split of a VOC folder."""
    return f"voc://{quote(str(directory), safe='/')}?split={quote(split, safe='')}"


def coco_uri(json_file: str | Path, images: str | Path) -> str:
    """The name of a COCO json with its folder of images."""
    return f"coco://{quote(str(json_file), safe='/')}?images={quote(str(images), safe='/')}"


def parse_uri(name: str) -> tuple[str, str, dict[str, str]]:
    """(scheme, path, options) of a name with "://", percent-decoded; ".txt" of a split is left out.

    Raises InputError on anything unexpected.
    """
    scheme, _, rest = name.partition("://")
    path, _, query = rest.partition("?")
    if scheme not in URIS:
        raise InputError(f"data set {name!r} has unknown scheme {scheme!r}: use one of {FORMS}")
    form, known = URIS[scheme]
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if key not in known or not equals or key in options:
            raise InputError(
                f"data set {name!r}: option {part!r} is not known or given twice: "
                f"{scheme}:// takes {', '.join(known)}; write it as {form}"
            )
        options[key] = unquote(value)
    if not path or not options.get(known[0]):
        raise InputError(f"data set {name!r} is not complete: write it as {form}")
    if scheme == "voc":
        options["split"] = options["split"].removesuffix(".txt")
    _check_fold(name, options)
    return scheme, unquote(path), options


def _check_fold(name: str, options: Mapping[str, str]) -> None:
    percent, fold = options.get("percent", "100"), options.get("fold", "0")
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", percent, re.ASCII) or not 0 < float(percent) <= 100:
        raise InputError(
            f"data set {name!r}: percent {percent!r} is no share of the images: write it as "
            "percent=1, above 0 and up to 100"
        )
    if not re.fullmatch(r"\d{1,4}", fold, re.ASCII) or int(fold) >= MOST_FOLDS:
        raise InputError(
            f"data set {name!r}: fold {fold!r} is none of 0 to {MOST_FOLDS - 1}: write it as fold=0"
        )
    if "fold" in options and "percent" not in options:
        raise InputError(
            f"data set {name!r}: a fold needs its share: write it as percent=1&fold={fold}"
        )
