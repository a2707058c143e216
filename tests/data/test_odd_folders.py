"""What a folder of data may hold beside well-made data: nothing is lost without a word."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from moco_det.data import load_dataset
from moco_det.data.check import overlap_warnings
from moco_det.data.layouts import find_data
from moco_det.data.splits import choose_test
from moco_det.foundation.errors import InputError
from tests.data.test_layouts import OBJECTS, coco_content, write_image, xml_text, yolo_text

NAMES = list(OBJECTS)


def yolo(root: Path, yaml: str | None = "names: [cat, dog]\ntrain: images\n") -> Path:
    for name in NAMES:
        write_image(root / "images" / f"{name}.jpg")
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{name}.txt").write_text(yolo_text(name))
    if yaml is not None:
        (root / "data.yaml").write_text(yaml)
    return root


def test_images_without_a_label_file_are_counted(tmp_path: Path) -> None:
    root = yolo(tmp_path / "d")
    (root / "labels" / f"{NAMES[0]}.txt").unlink()
    assert "1 images without a label file" in find_data(root, tmp_path / "out").said


def test_formats_that_are_not_read_are_named(tmp_path: Path) -> None:
    root = yolo(tmp_path / "d")
    (root / "images" / "x.HEIC").write_bytes(b"x")
    assert "1 .heic files are not read: convert them" in find_data(root, tmp_path / "out").said


@pytest.mark.parametrize("val", ["nothere", "other"])
def test_a_val_without_labels_is_refused(val: str, tmp_path: Path) -> None:
    root = yolo(tmp_path / "d", f"names: [cat, dog]\ntrain: images\nval: {val}\n")
    write_image(root / "other" / "a.jpg")
    with pytest.raises(InputError, match=rf"'val' \({val}\) has no images with labels"):
        find_data(root, tmp_path / "out")


@pytest.mark.parametrize(
    ("yaml", "match"),
    [
        ("train: 5\nnames: [a]", "'train' is"),
        ("train: images\nnames: [2001-13-45]", "line 2 is no timestamp"),
        ("train: images\nnames: " + "[" * 2000, "is not valid yaml"),
        ("train: images\nnames: [cat, cat]", "a name twice"),
        ("train: images\nnc: 10000000", "write a list of class names"),
        ("train: images\nnc: true", "write a list of class names"),
        (f"train: {'x' * 300}\nnames: [a]", "no images with labels"),
    ],
)
def test_an_odd_data_yaml_is_one_line(yaml: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        find_data(yolo(tmp_path / "d", yaml), tmp_path / "out")


def test_a_huge_class_number_is_refused_and_one_late_in_a_file_is_seen(tmp_path: Path) -> None:
    root = yolo(tmp_path / "d", yaml=None)
    label = root / "labels" / f"{NAMES[0]}.txt"
    label.write_text("0 .5 .5 .2 .2\n" * 400 + "3\t.5\t.5\t.2\t.2\n")
    assert len(load_dataset(find_data(root, tmp_path / "out").uris[0]).classes) == 4
    label.write_text("99999999999 .5 .5 .2 .2\n")
    with pytest.raises(InputError, match="write a data.yaml"):
        find_data(root, tmp_path / "out")


def test_val_and_test_without_train_are_split_together(tmp_path: Path) -> None:
    for i, name in enumerate(NAMES):
        split = ("val", "test")[i % 2]
        write_image(tmp_path / "d" / "images" / split / f"{name}.jpg")
        label = tmp_path / "d" / "labels" / split / f"{name}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(yolo_text(name))
    found = find_data(tmp_path / "d", tmp_path / "out")
    assert sum(len(load_dataset(uri)) for uri in found.uris) == len(NAMES)


def test_pipes_and_links_to_nothing_are_passed_over(tmp_path: Path) -> None:
    root = yolo(tmp_path / "d", yaml=None)
    os.mkfifo(root / "x.json")
    os.mkfifo(root / "images" / "z.jpg")
    (root / "y.json").symlink_to("/nowhere")
    found = find_data(root, tmp_path / "out")
    assert sum(len(load_dataset(uri)) for uri in found.uris) == len(NAMES)


@pytest.mark.parametrize("name", [b"\xff.jpg", b"a\nb.jpg"])
def test_names_that_no_list_can_hold_are_refused(name: bytes, tmp_path: Path) -> None:
    root = yolo(tmp_path / "d")
    os.rename(root / "images" / f"{NAMES[0]}.jpg", os.path.join(os.fsencode(root), name))
    with pytest.raises(InputError, match="rename it"):
        find_data(root, tmp_path / "out")


def test_two_files_of_one_picture_are_on_one_side() -> None:
    labels = {f"{n}{end}": {"cat"} for n in range(50) for end in (".jpg", ".png")}
    tested = choose_test(labels)
    assert tested and all(
        f"{name[:-4]}{end}" in tested for name in tested for end in (".jpg", ".png")
    )


def test_an_image_of_two_spellings_is_on_one_side(tmp_path: Path) -> None:
    content = coco_content([*NAMES, *NAMES])
    for i, image in enumerate(content["images"][len(NAMES) :], len(NAMES)):
        image.update(id=i, file_name=f"./{image['file_name']}")
    for name in NAMES:
        write_image(tmp_path / "d" / f"{name}.jpg")
    (tmp_path / "d" / "x.json").write_text(json.dumps(content))
    found = find_data(tmp_path / "d", tmp_path / "out")
    train, test = (load_dataset(uri) for uri in found.uris)
    assert not overlap_warnings(train, test) and len(train) + len(test) == 2 * len(NAMES)


def test_xml_of_equal_joined_paths_stay_with_their_images(tmp_path: Path) -> None:
    places = ["s/i", "q/i", "a/b_c", "a_b/c", "w/k", "w/l", "w/m"]
    for place, name in zip(places, NAMES, strict=False):
        write_image(tmp_path / "d" / f"{place}.jpg")
        (tmp_path / "d" / f"{place}.xml").write_text(xml_text(name))
    found = find_data(tmp_path / "d", tmp_path / "out")
    records = [r for uri in found.uris for r in load_dataset(uri, ("cat", "dog")).records]
    assert len(records) == len(places)
    made = tmp_path / "out" / "d"
    for image in (made / "JPEGImages").iterdir():
        xml = made / "Annotations" / f"{image.stem}.xml"
        assert image.resolve().with_suffix("") == xml.resolve().with_suffix("")


def test_a_coco_file_without_a_split_in_its_name_is_not_passed_over(tmp_path: Path) -> None:
    for name in NAMES:
        write_image(tmp_path / "d" / f"{name}.jpg")
    for file, names in (("annotations.json", NAMES), ("annotations_test.json", NAMES[:4])):
        (tmp_path / "d" / file).write_text(json.dumps(coco_content(names)))
    with pytest.raises(InputError, match="several COCO files"):
        find_data(tmp_path / "d", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"bbox": 1, "images": []}', "lists no images"),
        ('{"bbox": 1, "images": [{"file_name": "C:\\\\data\\\\frame 0.jpg"}]}', "take the folders"),
        ('{"bbox": 1, "images": [{"file_name": "' + "x" * 300 + '"}]}', "put them there"),
        ('{"bbox": 1, "images": ' + "[" * 100_000, "is it whole"),
    ],
)
def test_an_odd_coco_file_is_one_line(content: str, match: str, tmp_path: Path) -> None:
    write_image(tmp_path / "d" / "images" / "frame 0.jpg")
    (tmp_path / "d" / "x.json").write_text(content)
    with pytest.raises(InputError, match=match):
        find_data(tmp_path / "d", tmp_path / "out")


def test_blank_lines_in_a_class_list_shift_no_class(tmp_path: Path) -> None:
    root = yolo(tmp_path / "d", yaml=None)
    (root / "classes.txt").write_text("cat\n\ndog\n\n")
    label = root / "labels" / f"{NAMES[0]}.txt"
    label.write_text(label.read_text() + "2 .5 .5 .2 .2\n")
    assert load_dataset(find_data(root, tmp_path / "out").uris[0]).classes == (
        "cat",
        "class 1",
        "dog",
    )


def test_images_that_took_anothers_place_are_found_again(tmp_path: Path) -> None:
    for name in NAMES:
        write_image(tmp_path / "d" / f"{name}.jpg")
        (tmp_path / "d" / f"{name}.xml").write_text(xml_text(name))
    find_data(tmp_path / "d", tmp_path / "out")
    for name in NAMES:
        (tmp_path / "d" / f"{name}.jpg").rename(tmp_path / "d" / f"{name}.jpeg")
    found = find_data(tmp_path / "d", tmp_path / "out")
    assert sum(len(load_dataset(uri, ("cat", "dog"))) for uri in found.uris) == len(NAMES)
