"""The VOC reader: conventions, conversions and every kind of bad input."""

from __future__ import annotations

from pathlib import Path

import pytest

from moco_det.data import VOC_CLASSES, load_dataset, read_voc, voc_uri
from moco_det.foundation.errors import InputError
from tests.data.builders import write_voc


def test_boxes_become_zero_based_and_continuous(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": [("cell", 1, 1, 30, 20), ("cell", 5, 6, 7, 9, 1)]})
    dataset = read_voc(root, "train")
    whole, small = dataset.records[0].annotations
    assert whole.bbox == (0.0, 0.0, 30.0, 20.0) and whole.area == 600.0
    assert small.bbox == (4.0, 5.0, 7.0, 9.0)  # 3 x 4 pixels, counted inclusively
    assert (whole.difficult, small.difficult) == (False, True)
    assert (whole.id, small.id) == (1, 2)
    assert dataset.layout == "voc" and not dataset.has_masks and dataset.voc_metric == "area"


def test_classes_are_the_twenty_where_they_suffice_and_else_alphabetical(tmp_path: Path) -> None:
    twenty = write_voc(tmp_path / "voc", {"a": [("dog", 1, 1, 9, 9)]})
    own = write_voc(tmp_path / "own", {"a": [("zebu", 1, 1, 9, 9), ("ant", 1, 1, 5, 5)]})
    assert read_voc(twenty, "train").classes == VOC_CLASSES
    assert read_voc(twenty, "train").records[0].annotations[0].category == 11
    dataset = read_voc(own, "train")
    assert dataset.classes == ("ant", "zebu") and dataset.category_ids == (1, 2)
    assert [a.category for a in dataset.records[0].annotations] == [1, 0]


def test_given_classes_keep_their_order(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": [("ant", 1, 1, 9, 9)]})
    assert read_voc(root, "train", ["zebu", "ant"]).records[0].annotations[0].category == 1


def test_a_class_that_training_lacks_is_refused_by_name(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": [("ant", 1, 1, 9, 9)]})
    with pytest.raises(InputError, match="class 'ant' in .*a.xml is not among .* zebu"):
        read_voc(root, "train", ["zebu"])


def test_zero_area_is_dropped_and_overhang_clipped_and_both_are_counted(tmp_path: Path) -> None:
    boxes = [("c", 4, 4, 4, 4), ("c", 9, 3, 9, 8), ("c", -3, 1, 40, 20), ("c", 90, 1, 99, 9)]
    boxes += [("c", 9, 3, 5, 8)]
    dataset = read_voc(write_voc(tmp_path / "set", {"a": boxes}), "train")
    assert [a.bbox for a in dataset.records[0].annotations] == [(0.0, 0.0, 30.0, 20.0)]
    assert dataset.skipped == (
        "2 boxes of zero area dropped (first: a.xml)",
        "1 boxes clipped to their image (first: a.xml)",
        "1 boxes wholly outside their image dropped (first: a.xml)",
        "1 boxes with xmax below xmin or ymax below ymin dropped (first: a.xml)",
    )


def test_every_box_of_an_object_is_an_object(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": [("c", 1, 1, 9, 9, 1)]})
    path = root / "Annotations" / "a.xml"
    more = "".join(
        f"<bndbox><ymin>2</ymin><xmin>{x}</xmin><xmax>{x + 4}</xmax><ymax>8</ymax></bndbox>"
        for x in (3, 12)
    )
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    path.write_text(path.read_text().replace("</object>", f"{more}{part}</object>"))
    objects = read_voc(root, "train").records[0].annotations
    assert [a.bbox for a in objects] == [(0, 0, 9, 9), (2, 1, 7, 8), (11, 1, 16, 8)]
    assert all(a.difficult for a in objects) and [a.id for a in objects] == [1, 2, 3]


def test_annotations_may_lie_beside_the_images(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": [("c", 1, 1, 9, 9)]})
    (root / "Annotations" / "a.xml").rename(root / "JPEGImages" / "a.xml")
    assert read_voc(root, "train").objects == 1
    (root / "Annotations").rmdir()
    assert read_voc(root, "train").objects == 1


def test_an_annotation_may_be_of_any_encoding_that_it_declares(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": [("zelle", 1, 1, 9, 9)]})
    path = root / "Annotations" / "a.xml"
    text = path.read_text().replace("zelle", "zählt")
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_text(text, encoding=encoding)
        assert read_voc(root, "train").classes == ("zählt",)


def test_boxes_in_shares_of_the_image_are_refused(tmp_path: Path) -> None:
    boxes = [("c", 0.1, 0.2, 0.5, 0.9), ("c", 0, 0, 1, 1)]
    with pytest.raises(InputError, match=r"Annotations: every box lies within 0\.\.1"):
        read_voc(write_voc(tmp_path / "set", {"a": boxes}), "train")


def test_where_nothing_can_be_used_the_counted_reasons_are_told(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": [("c", 9, 3, 5, 8)]})
    with pytest.raises(InputError, match="no object with a usable box: 1 boxes with xmax below"):
        read_voc(root, "train")


def test_png_images_and_spaces_in_names_are_found(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "my set?", {"my cell": [("c", 1, 1, 9, 9)]}, suffix=".png")
    dataset = load_dataset(voc_uri(root, "train"))
    assert dataset.records[0].image_id == "my cell"
    assert dataset.records[0].file_name.endswith("my cell.png")
    assert Path(dataset.records[0].file_name).is_absolute()
    assert load_dataset(dataset.uri).fingerprint == dataset.fingerprint


def test_flags_of_per_class_split_files_are_not_part_of_the_name(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": [("c", 1, 1, 9, 9)], "b": []})
    (root / "ImageSets" / "Main" / "c_train.txt").write_text("a  1\nb -1\n")
    assert [r.image_id for r in read_voc(root, "c_train").records] == ["a", "b"]


def test_a_missing_size_is_read_from_the_image(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": [("c", 1, 1, 9, 9)]})
    path = root / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<width>30</width>", "<width>0</width>"))
    record = read_voc(root, "train").records[0]
    assert (record.height, record.width) == (20, 30)


def test_a_missing_split_lists_those_that_exist(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "set", {"a": [("c", 1, 1, 9, 9)]})
    with pytest.raises(InputError, match="test.txt does not exist: choose one of train"):
        read_voc(root, "test")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda r: (r / "ImageSets/Main/train.txt").write_text(""), "train.txt is empty"),
        (lambda r: (r / "ImageSets/Main/train.txt").write_text("a\na\n"), "names a 2 times"),
        (lambda r: (r / "Annotations/a.xml").unlink(), "a.xml does not exist"),
        (lambda r: (r / "Annotations/a.xml").write_text("<annot"), "not readable xml"),
        (lambda r: (r / "JPEGImages/a.jpg").unlink(), "image .*a.jpg does not exist"),
        (lambda r: (r / "Annotations/a.xml").write_text("<annotation/>"), "no object"),
        (
            lambda r: (r / "Annotations/a.xml").write_text(
                "<annotation><object><name>c</name><bndbox><xmin>3</xmin></bndbox></object>"
                "</annotation>"
            ),
            "bndbox is not four numbers",
        ),
        (
            lambda r: (r / "Annotations/a.xml").write_text("<annotation><object/></annotation>"),
            "object without a name",
        ),
        (lambda r: [p.unlink() for p in (r / "JPEGImages").iterdir()], "does not exist"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, spoil, message: str) -> None:
    root = write_voc(tmp_path / "set", {"a": [("c", 1, 1, 9, 9)]})
    spoil(root)
    with pytest.raises(InputError, match=message) as caught:
        read_voc(root, "train")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_voc_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_voc(tmp_path / "nowhere", "train")
    with pytest.raises(InputError, match="a VOC folder holds"):
        read_voc(tmp_path, "train")


def test_the_blood_cells_read_whole(data_root: Path) -> None:
    sizes = {}
    for split in ("train", "val", "trainval", "test"):
        dataset = read_voc(data_root / "voc_bccd", split)
        assert dataset.classes == ("Platelets", "RBC", "WBC")
        sizes[split] = (len(dataset), dataset.objects, dataset.skipped)
    assert {s: n for s, (n, _, _) in sizes.items()} == {
        "train": 205,
        "val": 87,
        "trainval": 292,
        "test": 72,
    }
    assert sizes["trainval"][1] + sizes["test"][1] == 4888 - 2
    assert sizes["trainval"][2] == ("2 boxes of zero area dropped (first: BloodImage_00338.xml)",)


def test_the_voc_2012_sample_reads_whole(data_root: Path) -> None:
    parts = [read_voc(data_root / "voc2012_sample", split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [50, 50]
    assert sum(part.objects for part in parts) == 273
    difficult = [a.difficult for part in parts for r in part.records for a in r.annotations]
    assert sum(difficult) == 38
    assert all(part.classes == VOC_CLASSES and part.skipped == () for part in parts)
