"""Data sets are found in the layouts that people have, split by one rule, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moco_det.data import DetectionDataset, load_dataset
from moco_det.data.image import write_jpeg
from moco_det.data.layouts import find_data, split_coco
from moco_det.data.splits import choose_test
from moco_det.foundation.errors import InputError

WIDTH, HEIGHT = 40, 20
CLASSES = ("cat", "dog")
# image -> objects: class, then x0, y0, x1, y1 in pixels
OBJECTS = {
    f"frame {n}": [(CLASSES[n % 2], (2.0, 4.0, 12.0, 14.0)), ("cat", (20.0, 5.0, 30.0, 15.0))]
    for n in range(10)
}


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jpeg(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8))


def write_label(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def yolo_text(name: str) -> str:
    rows = [
        (CLASSES.index(c), (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH)
        + ((y1 - y0) / HEIGHT,)
        for c, (x0, y0, x1, y1) in OBJECTS[name]
    ]
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def xml_text(name: str) -> str:
    objects = "".join(
        f"<object><name>{c}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        for c, (x0, y0, x1, y1) in OBJECTS[name]
    )
    return f'<annotation verified="yes">{objects}</annotation>'


def coco_content(names: list[str]) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate(names)]
    rows = [
        {
            "id": 10 * i + k,
            "image_id": i,
            "category_id": CLASSES.index(c),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        for i, name in enumerate(names)
        for k, (c, (x0, y0, x1, y1)) in enumerate(OBJECTS[name])
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": rows, "categories": categories}


def load(root: Path, made: Path) -> tuple[DetectionDataset, DetectionDataset]:
    """Both splits, whose objects are those of OBJECTS."""
    train = load_dataset(find_data(root, made).uris[0])
    test = load_dataset(find_data(root, made).uris[1], train.classes)
    for record in (*train.records, *test.records):
        found = [(train.classes[a.category], a.bbox) for a in record.annotations]
        wanted = OBJECTS[Path(record.file_name).stem]
        assert [c for c, _ in found] == [c for c, _ in wanted]
        np.testing.assert_allclose([b for _, b in found], [b for _, b in wanted])
    return train, test


def names_of(dataset: DetectionDataset) -> list[str]:
    return sorted(Path(record.file_name).stem for record in dataset.records)


YAMLS = {
    # as Ultralytics writes it, moved from another machine
    "images/{}": "path: /somewhere/else\ntrain: images/train\nval: images/val\n"
    "names: {0: cat, 1: dog}\n",
    # as Roboflow exports it: counted from a folder that is not there
    "{}/images": "train: ../train/images\nval: ../val/images\nnc: 2\nnames: [cat, dog]\n",
}


@pytest.mark.parametrize("form", YAMLS)
def test_yolo_is_read_in_both_of_its_forms(form: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for n, name in enumerate(OBJECTS):
        folder = form.format("train" if n < 7 else "val")
        write_image(root / folder / f"{name}.jpg")
        labels = root / folder.replace("images", "labels")
        write_label(labels / f"{name}.txt", yolo_text(name))
    write_label(root / "data.yaml", YAMLS[form])
    train, test = load(root / "data.yaml", tmp_path / "made")
    assert names_of(train) == list(OBJECTS)[:7] and names_of(test) == list(OBJECTS)[7:]
    assert train.classes == CLASSES


def test_yolo_without_a_val_of_its_own_is_split_and_without_data_yaml_is_read(
    tmp_path: Path,
) -> None:
    root = tmp_path / "set"
    for name in OBJECTS:
        write_image(root / "images" / f"{name}.jpg")
        write_label(root / "labels" / f"{name}.txt", yolo_text(name))
    write_label(root / "data.yaml", "train: images\nval: images\nnames: [cat, dog]\n")
    train, test = load(root, tmp_path / "made")
    assert len(train) == 8 and len(test) == 2 and not set(names_of(train)) & set(names_of(test))
    (root / "data.yaml").unlink()
    write_label(root / "classes.txt", "cat\ndog\n")
    assert names_of(load(root, tmp_path / "made")[1]) == names_of(test)


def test_yolo_polygons_are_masks(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for n, split in enumerate(("train", "val")):
        write_image(root / "images" / split / f"{n}.jpg")
        write_label(root / "labels" / split / f"{n}.txt", "0 0.1 0.2 0.5 0.2 0.5 0.8\n")
    write_label(root / "data.yaml", "train: images/train\nval: images/val\nnames: [cat]\n")
    dataset = load_dataset(find_data(root, tmp_path / "made").uris[0])
    (found,) = dataset.records[0].annotations
    assert dataset.has_masks and found.segmentation == [[4, 4, 20, 4, 20, 16]]
    np.testing.assert_allclose(found.bbox, (4, 4, 20, 16))


def test_a_yaml_that_names_the_whole_file_system_does_not_have_it_searched(tmp_path: Path) -> None:
    write_label(tmp_path / "data.yaml", "train: /\nval: images\nnames: [cat, dog]\n")
    with pytest.raises(InputError, match="'train' is /, all there is"):
        find_data(tmp_path, tmp_path / "made")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 x 1", "line 1 is '0 0.5 0.5 x 1': write numbers"),
        ("2 0.5 0.5 1 1", "class 2, and the classes are numbered 0 to 1"),
        ("0 0.5 0.5 1", "has 3 numbers after the class"),
        ("0 20 10 5 5", "is not in shares of the image"),
    ],
)
def test_a_yolo_label_that_is_none_is_named_by_its_line(
    line: str, message: str, tmp_path: Path
) -> None:
    write_image(tmp_path / "images" / "a.jpg")
    write_label(tmp_path / "labels" / "a.txt", line)
    write_label(tmp_path / "data.yaml", "train: images\nval: images\nnames: [cat, dog]\n")
    with pytest.raises(InputError, match=message):
        find_data(tmp_path, tmp_path / "made")


@pytest.mark.parametrize("places", [("images", "annotations"), ("all", "all")])
def test_xml_without_imagesets_is_split_by_the_rule_which_is_written_down(
    places: tuple[str, str], tmp_path: Path
) -> None:
    root, made = tmp_path / "set", tmp_path / "made"
    for name in OBJECTS:
        write_image(root / places[0] / f"{name}.jpg")
        write_label(root / places[1] / f"{name}.xml", xml_text(name))
    train, test = load(root, made)
    assert len(train) == 8 and len(test) == 2
    written = (made / "set/ImageSets/Main/test.txt").read_text().splitlines()
    assert sorted(written) == names_of(test)
    assert "8 images are trained and 2 tested on, one image in 5" in find_data(root, made).said


def test_xml_in_folders_of_splits_keeps_them_and_names_that_occur_twice(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split in ("train", "valid"):
        write_image(root / split / "frame 0.jpg")
        write_label(root / split / "frame 0.xml", xml_text("frame 0"))
    found = find_data(root, tmp_path / "made")
    for uri, split in zip(found.uris, ("train", "valid"), strict=True):
        (record,) = load_dataset(uri).records
        assert Path(record.file_name).resolve() == root / split / "frame 0.jpg"


def test_a_voc_folder_with_one_list_is_split_and_with_two_is_taken_as_it_is(
    tmp_path: Path,
) -> None:
    root = tmp_path / "set"
    for name in OBJECTS:
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write_label(root / "Annotations" / f"{name}.xml", xml_text(name))
    lists = root / "ImageSets" / "Main"
    write_label(lists / "default.txt", "\n".join(list(OBJECTS)[:5]))
    train, test = load(root, tmp_path / "made")
    assert sorted(names_of(train) + names_of(test)) == list(OBJECTS)[:5]
    write_label(lists / "train.txt", "frame 3")
    write_label(lists / "val.txt", "frame 4")
    assert [names_of(part) for part in load(root, tmp_path / "made")] == [["frame 3"], ["frame 4"]]


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_{}2017.json", "{}2017"),
        ("{}/_annotations.coco.json", "{}"),
        ("{}.json", "images/{}"),
    ],
)
def test_coco_exports_are_found_with_their_images(file: str, images: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    parts = {"train": list(OBJECTS)[:7], "val": list(OBJECTS)[7:]}
    for split, names in parts.items():
        for name in names:
            write_image(root / images.format(split) / f"{name}.jpg")
        write_label(root / file.format(split), json.dumps(coco_content(names)))
    assert [names_of(part) for part in load(root, tmp_path / "made")] == list(parts.values())


def test_one_coco_json_is_split_without_losing_an_object(tmp_path: Path) -> None:
    file = tmp_path / "set" / "labels.json"
    for name in OBJECTS:
        write_image(tmp_path / "set" / "data" / f"{name}.jpg")
    write_label(file, json.dumps(coco_content(list(OBJECTS))))
    train, test = load(tmp_path / "set", tmp_path / "made")
    assert len(train) == 8 and len(test) == 2 and train.objects + test.objects == 20
    found = split_coco(file, tmp_path / "set" / "data", tmp_path / "other")
    assert names_of(load_dataset(found.uris[1])) == names_of(test)
    shutil.rmtree(tmp_path / "set" / "data")
    with pytest.raises(InputError, match="none of the images that .*labels.json names is below"):
        find_data(tmp_path / "set", tmp_path / "made")


def test_the_first_image_of_each_class_is_trained_on() -> None:
    labels = {f"image {n}": {"common"} for n in range(50)} | {f"bare {n}": set() for n in range(20)}
    labels |= {"rare": {"rare"}, "image 7": {"common", "once"}}
    tested = choose_test(labels)
    assert not tested & {"rare", "image 7"}
    assert len([name for name in tested if labels[name]]) == 51 // 5
    assert len([name for name in tested if not labels[name]]) == 4
    assert choose_test(dict(reversed(labels.items()))) == tested
    with pytest.raises(InputError, match="1 of 2 images have objects"):
        choose_test({"a": {"cat"}, "b": set()})


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("annotations.xml", "<?xml?>\n<annotations>", "of CVAT.*datum convert -if cvat"),
        ("a.json", '{"version": "5", "shapes": []}', "of LabelMe.*labelme2coco DIR"),
        ("via.json", '{"_via_settings": {}}', "of VIA.*COCO format"),
        ("via.json", '{"a.jpg9": {"filename": "a.jpg", "regions": []}}', "of VIA"),
        ("via.csv", "filename,file_size,file_attributes\n", "of VIA"),
    ],
)
def test_exports_of_other_tools_are_named_with_what_converts_them(
    file: str, text: str, message: str, tmp_path: Path
) -> None:
    write_image(tmp_path / "a.jpg")
    write_label(tmp_path / file, text)
    with pytest.raises(InputError, match=rf"{message}.*expected: .*data.yaml"):
        find_data(tmp_path, tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_images_alone_are_photos_and_an_empty_folder_is_nothing(tmp_path: Path) -> None:
    write_image(tmp_path / "deep" / "a.jpg")
    write_image(tmp_path / "made" / "b.jpg")
    write_image(tmp_path / "__MACOSX" / "._a.jpg")
    (tmp_path / "deep" / "up").symlink_to(tmp_path)
    found = find_data(tmp_path, tmp_path / "made" / "data")
    assert found.photos == (tmp_path / "deep" / "a.jpg",) and not found.uris
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images: what is read is one of annotations/"):
        find_data(tmp_path / "empty", tmp_path / "made")
