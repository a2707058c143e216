"""A share of a data set's images: fixed folds, the same everywhere."""

from __future__ import annotations

import hashlib
from itertools import combinations
from pathlib import Path

import pytest

from moco_det.data import coco_uri, load_dataset, load_datasets, voc_uri
from moco_det.data.catalog_names import parse_uri
from moco_det.data.image_files import image_files
from moco_det.data.layouts import find_data
from moco_det.data.splits import fold_of
from moco_det.foundation.errors import InputError
from tests.data.builders import coco_content, write_coco, write_voc
from tests.data.test_odd_folders import yolo

FILES = [f"{number:012d}.jpg" for number in range(1, 1001)]
SHARES = ("1", "2", "5", "10")
# sha256 of every fold below, one line per fold: a change here makes other data of finished runs
GOLDEN = "faa8b0bb2207bcc500840940d0961f58d3b868bf286c27066edd2a914a9da119"
NAMES = [f"photo_{number}" for number in range(20)]


def fold(percent: str, number: int, files: list[str] = FILES) -> list[int]:
    return fold_of(files, {"percent": percent, "fold": str(number)})


def voc(root: Path) -> str:
    """Two classes, of which the rare one is in a single image."""
    boxes = {name: [("rare" if name == NAMES[7] else "usual", 1, 1, 9, 9)] for name in NAMES}
    return voc_uri(write_voc(root, boxes), "train")


def coco(root: Path) -> str:
    content = coco_content()
    size = {"height": 20, "width": 30}
    content["images"] = [
        {"id": 50 - i, "file_name": f"{n}.jpg", **size} for i, n in enumerate(NAMES)
    ]
    box = {"category_id": 7, "bbox": [2, 3, 10, 5], "area": 50, "iscrowd": 0}
    content["annotations"] = [{"id": i, "image_id": 50 - i, **box} for i in range(len(NAMES))]
    return coco_uri(*write_coco(root, content))


def stems(name: str) -> set[str]:
    return {Path(record.file_name).stem for record in load_dataset(name).records}


def test_the_folds_are_those_of_every_earlier_version() -> None:
    assert fold("1", 0) == [23, 255, 271, 292, 401, 521, 654, 674, 715, 789]
    lines = [
        f"{percent} {number} {fold(percent, number)}\n" for percent in SHARES for number in range(5)
    ]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == GOLDEN


@pytest.mark.parametrize("percent", [*SHARES, "20"])
def test_five_folds_share_no_image(percent: str) -> None:
    folds = [set(fold(percent, number)) for number in range(5)]
    assert {len(one) for one in folds} == {10 * int(percent)}
    assert not any(a & b for a, b in combinations(folds, 2))


def test_folds_that_do_not_fit_are_cut_from_another_shuffle() -> None:
    first, second, third, fourth = (set(fold("50", number)) for number in range(4))
    assert not first & second and not third & fourth
    assert len(first | second) == len(third | fourth) == 1000
    assert third not in (first, second)


def test_a_share_of_few_images_is_one_image_at_least() -> None:
    three = FILES[:3]
    assert sorted(sum((fold("1", number, three) for number in range(3)), [])) == [0, 1, 2]


def test_folders_and_endings_do_not_matter() -> None:
    moved = [f"/elsewhere/{name.replace('.jpg', '.png')}" for name in FILES]
    assert fold("5", 3, moved) == fold("5", 3)


@pytest.mark.parametrize("make", [voc, coco])
def test_detection_and_pre_training_see_the_same_images_of_any_layout(make, tmp_path: Path) -> None:
    name = f"{make(tmp_path / 'set')}&percent=20&fold=2"
    expected = {NAMES[place] for place in fold("20", 2, NAMES)}
    assert len(expected) == 4 and stems(name) == expected
    assert {Path(file).stem for file in image_files(name)[1]} == expected


def test_a_yolo_folder_has_the_folds_of_its_images(tmp_path: Path) -> None:
    train, _ = find_data(yolo(tmp_path / "set"), tmp_path / "out").uris
    every = load_dataset(train)
    kept = fold("50", 1, [record.file_name for record in every.records])
    assert load_dataset(f"{train}&percent=50&fold=1").records == tuple(
        every.records[i] for i in kept
    )


def test_a_fold_has_its_own_name_and_fingerprint_and_all_the_classes(tmp_path: Path) -> None:
    every = voc(tmp_path / "set")
    folds = [load_dataset(f"{every}&percent=10&fold={number}") for number in range(5)]
    sets = [load_dataset(every), *folds]
    assert len({one.fingerprint for one in sets}) == len({one.uri for one in sets}) == 6
    assert {one.classes for one in sets} == {("rare", "usual")}
    assert folds[3].name == "set/train?percent=10&fold=3"
    assert sets[0].share == "" and len({one.share for one in folds}) == 1
    assert folds[0].share != load_dataset(f"{every}&percent=5").share
    assert load_datasets([folds[3].uri, every]).share.startswith("10 percent of ")
    assert load_dataset(folds[3].uri) == folds[3]
    assert load_dataset(f"{every}&percent=10") == folds[0]
    assert load_dataset(f"{every}&percent=100").fingerprint == sets[0].fingerprint


def test_detectron2s_names_take_a_share_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    own = voc(tmp_path / "VOC2012")
    builtin = load_dataset("voc_2012_train?percent=20&fold=1")
    assert builtin.records == load_dataset(f"{own}&percent=20&fold=1").records
    assert builtin.name == "voc_2012_train?percent=20&fold=1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("percent=0", "percent '0' is no share of the images: write it as percent=1"),
        ("percent=101", "percent '101' is no share"),
        ("percent=1%25", "percent '1%' is no share"),
        ("percent=nan", "percent 'nan' is no share"),
        ("percent=", "percent '' is no share"),
        ("percent=1&fold=-1", "fold '-1' is none of 0 to 999: write it as fold=0"),
        ("percent=1&fold=1000", "fold '1000' is none of"),
        ("percent=1&fold=a", "fold 'a' is none of"),
        ("fold=2", "a fold needs its share: write it as percent=1&fold=2"),
        ("percent=1&percent=2", "given twice"),
        ("share=1", "voc:// takes split, metric, percent, fold"),
    ],
)
def test_a_share_that_is_none_is_one_clear_line(options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_uri(f"voc:///x?split=train&{options}")


def test_a_share_of_nothing_is_nothing() -> None:
    assert fold("5", 3, []) == []
