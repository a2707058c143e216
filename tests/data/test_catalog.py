"""Names of data sets, and using several of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from moco_det.data import coco_uri, load_dataset, load_datasets, voc_uri
from moco_det.data.catalog_names import parse_uri
from moco_det.foundation.errors import InputError
from tests.data.builders import coco_content, write_coco, write_voc


@pytest.mark.parametrize("path", ["/a b/c?d&e=%20#+.x", "relative/dir", "ü/ñ"])
def test_uris_survive_any_path(path: str) -> None:
    assert parse_uri(voc_uri(path, "my split")) == ("voc", path, {"split": "my split"})
    assert parse_uri(coco_uri(path, path)) == ("coco", path, {"images": path})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("imagenet", "'imagenet' is not known: use one of voc://DIR"),
        ("ftp://x?split=a", "unknown scheme 'ftp'"),
        ("voc:///x", "is not complete"),
        ("voc://?split=a", "is not complete"),
        ("coco:///x.json?split=a", "option 'split=a' is not known"),
        ("voc:///x?split=a&split=b", "given twice"),
        (3, "data set 3 is not known"),
    ],
)
def test_a_bad_name_lists_the_forms_or_the_options(name, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(name)


def test_builtin_names_are_found_below_the_folder_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for year in ("2007", "2012"):
        write_voc(tmp_path / f"VOC{year}", {f"{year}_1": [("dog", 1, 1, 9, 9)]}, "trainval")
    (tmp_path / "coco").mkdir()
    content = coco_content()
    path, images = write_coco(tmp_path / "coco", content)
    (tmp_path / "coco" / "annotations").mkdir()
    path.rename(tmp_path / "coco" / "annotations" / "instances_val2017.json")
    images.rename(tmp_path / "coco" / "val2017")

    old, new = load_dataset("voc_2007_trainval"), load_dataset("voc_2012_trainval")
    assert (old.layout, old.voc_metric, new.voc_metric) == ("voc", "2007", "area")
    assert old.name == "voc_2007_trainval" and old.uri.startswith("voc://")
    assert load_dataset("coco_2017_val").classes == ("cat", "dog")
    both = load_datasets(["voc_2007_trainval", "voc_2012_trainval"])
    assert [r.image_id for r in both.records] == ["2007_1", "2012_1"]
    assert both.name == "voc_2007_trainval + voc_2012_trainval"
    with pytest.raises(InputError, match="test.txt does not exist"):
        load_dataset("voc_2007_test")
    with pytest.raises(InputError, match=r"differ in layout \(voc; coco\)"):
        load_datasets(["voc_2007_trainval", "coco_2017_val"], classes=["cat", "dog"])


def test_a_builtin_without_its_folder_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "none"))
    with pytest.raises(InputError, match="set DETECTRON2_DATASETS"):
        load_dataset("coco_2017_train")


def test_the_metric_of_a_voc_folder_is_an_option(tmp_path: Path) -> None:
    name = voc_uri(write_voc(tmp_path / "set", {"a": [("c", 1, 1, 9, 9)]}), "train")
    assert load_dataset(name).voc_metric == "area"
    assert load_dataset(name + "&metric=2007").voc_metric == "2007"
    with pytest.raises(InputError, match="metric '2010' is not known"):
        load_dataset(name + "&metric=2010")


def test_several_voc_folders_get_the_union_of_their_classes(tmp_path: Path) -> None:
    one = write_voc(tmp_path / "one", {"a": [("bee", 1, 1, 9, 9)]})
    two = write_voc(tmp_path / "two", {"a": [("ant", 1, 1, 9, 9)]})
    both = load_datasets([voc_uri(one, "train"), voc_uri(two, "train")])
    assert both.classes == ("ant", "bee")
    assert [r.annotations[0].category for r in both.records] == [1, 0]
    assert [r.image_id for r in both.records] == ["0:a", "1:a"]


def test_one_name_is_a_list_of_one(tmp_path: Path) -> None:
    name = voc_uri(write_voc(tmp_path / "one", {"a": [("bee", 1, 1, 9, 9)]}), "train")
    assert load_datasets(name) == load_datasets([name]) == load_dataset(name)
