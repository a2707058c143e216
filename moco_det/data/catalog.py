"""From the name of a data set to the data set."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from moco_det.data.catalog_names import (
    BUILTIN_COCO,
    BUILTIN_VOC,
    FORMS,
    coco_uri,
    parse_uri,
    voc_uri,
)
from moco_det.data.read_coco import read_coco
from moco_det.data.read_voc import read_voc
from moco_det.data.records import DetectionDataset, concatenate
from moco_det.data.splits import fold_of
from moco_det.foundation.errors import InputError


def load_dataset(name: str, classes: Sequence[str] | None = None) -> DetectionDataset:
    """The data set of that name; load a test set with the classes of its training set.

    `name`: voc://DIR?split=..., coco://FILE.json?images=DIR, or one of detectron2's names, found
    below the folder $DETECTRON2_DATASETS (default ./datasets); a share of its images by the options
    percent and fold. Raises InputError.
    """
    builtin, _, query = str(name).partition("?")
    if builtin in BUILTIN_COCO or builtin in BUILTIN_VOC:
        uri = "&".join(filter(None, (_builtin_uri(builtin), query)))
        return replace(load_dataset(uri, classes), name=name)
    if not isinstance(name, str) or "://" not in name:
        raise InputError(f"data set {name!r} is not known: use one of {FORMS}")
    scheme, path, options = parse_uri(name)
    if scheme == "coco":
        return _fold(read_coco(path, options["images"], classes), options)
    dataset = _fold(read_voc(path, options["split"], classes), options)
    metric = options.get("metric", dataset.voc_metric)
    if metric not in ("2007", "area"):
        raise InputError(f"data set {name!r}: metric {metric!r} is not known: use 2007 or area")
    return replace(dataset, voc_metric=cast(Literal["2007", "area"], metric))


def load_datasets(
    names: str | Sequence[str], classes: Sequence[str] | None = None
) -> DetectionDataset:
    """Several data sets as one, as DATASETS.TRAIN of a yaml names them.

    VOC folders with classes of their own get the classes of all of them, alphabetically.
    """
    names = [names] if isinstance(names, str) else list(names)
    parts = [load_dataset(name, classes) for name in names]
    if classes is None and all(part.layout == "voc" for part in parts):
        union = sorted({label for part in parts for label in part.classes})
        if any(part.classes != tuple(union) for part in parts):
            parts = [load_dataset(name, union) for name in names]
    return concatenate(parts)


def _fold(dataset: DetectionDataset, options: Mapping[str, str]) -> DetectionDataset:
    if "percent" not in options:
        return dataset
    places = fold_of([record.file_name for record in dataset.records], options)
    query = f"percent={options['percent']}&fold={options.get('fold', 0)}"
    images = [(r.image_id, r.height, r.width, len(r.annotations)) for r in dataset.records]
    whole = hashlib.sha256(repr((dataset.classes, images)).encode()).hexdigest()
    return replace(
        dataset,
        name=f"{dataset.name}?{query}",
        uri=f"{dataset.uri}&{query}",
        records=tuple(dataset.records[place] for place in places),
        share=f"{float(options['percent']):g} percent of {whole}",
    )


def datasets_root() -> Path:
    """The folder in which the builtin names are looked up."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def _builtin_uri(name: str) -> str:
    root = datasets_root()
    if not root.is_dir():
        raise InputError(
            f"data set {name} is looked for in {root.absolute()}, which is not there: "
            "set DETECTRON2_DATASETS to the folder that holds coco/, VOC2007/, VOC2012/"
        )
    if name in BUILTIN_COCO:
        json_file, images = BUILTIN_COCO[name]
        return coco_uri(root / json_file, root / images)
    folder, split = BUILTIN_VOC[name]
    return voc_uri(root / folder, split)
