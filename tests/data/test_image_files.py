"""Detection and pre-training find the images of a VOC or COCO set at the same places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moco_det.data import coco_uri, image_files, load_dataset, voc_uri
from moco_det.data.image_files import IMAGE_SUFFIXES
from moco_det.foundation.errors import InputError
from pretrain.data import list_images
from tests.data.builders import coco_content, write_coco, write_image, write_voc

BOX = [("c", 1, 1, 9, 9)]


def found(uri: str) -> list[str]:
    """The image paths that both find, in pre-training's order."""
    listed = list(list_images(uri).paths)
    assert sorted(record.file_name for record in load_dataset(uri).records) == sorted(listed)
    return listed


@pytest.mark.parametrize("folder", ["my set", "100%", "a%20b", "what?", "R&D #2"])
def test_folders_may_have_any_name_where_the_uri_encodes_it(tmp_path: Path, folder: str) -> None:
    root = write_voc(tmp_path / folder, {"x": BOX})
    assert found(voc_uri(root, "train")) == [str(root / "JPEGImages" / "x.jpg")]
    path, images = write_coco(tmp_path / folder / "coco", coco_content())
    assert found(coco_uri(path, images)) == [str(images / f"{name}.jpg") for name in "bac"]


def test_a_hand_written_uri_may_hold_spaces(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "my set", {"x": BOX})
    assert found(f"voc://{root}?split=train") == found(voc_uri(root, "train"))


def test_only_uris_are_percent_encoded_names_in_files_are_not(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"a%20b": BOX, "a b": BOX})
    names = [Path(path).name for path in found(voc_uri(root, "train"))]
    assert names == ["a%20b.jpg", "a b.jpg"]
    content = coco_content()
    for image, name in zip(content["images"], ("a%20b.jpg", "a b.jpg", "c.jpg"), strict=True):
        image["file_name"] = name
    uri = coco_uri(*write_coco(tmp_path / "coco", content))
    assert [Path(path).name for path in found(uri)] == ["a%20b.jpg", "a b.jpg", "c.jpg"]


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"x": BOX, "y": BOX})
    split = root / "ImageSets" / "Main" / "train.txt"
    path, images = write_coco(tmp_path / "coco", coco_content())
    text = path.read_text()
    for encoding in ("utf-8-sig", "utf-16"):
        split.write_text("x\r\ny\r\n", encoding=encoding)
        assert [Path(path).name for path in found(voc_uri(root, "train"))] == ["x.jpg", "y.jpg"]
        path.write_text(text, encoding=encoding)
        assert len(found(coco_uri(path, images))) == 3
        listed = tmp_path / "list.txt"
        listed.write_text("voc/JPEGImages/x.jpg\nvoc/JPEGImages/y.jpg\n", encoding=encoding)
        assert [Path(path).name for path in list_images(str(listed)).paths] == ["x.jpg", "y.jpg"]


def test_a_file_that_a_json_names_twice_is_pre_trained_on_once(tmp_path: Path) -> None:
    content = coco_content()
    content["images"].append({**content["images"][0], "id": 77})
    uri = coco_uri(*write_coco(tmp_path / "coco", content))
    assert [Path(path).name for path in list_images(uri).paths] == ["b.jpg", "a.jpg", "c.jpg"]
    assert len(load_dataset(uri)) == 4


def test_folders_may_be_separated_by_backslashes_in_a_json_made_on_windows(tmp_path: Path) -> None:
    content = coco_content()
    path, images = write_coco(tmp_path / "coco", content)
    write_image(images / "left" / "a.jpg")
    write_image(images / r"left\b.jpg")
    content["images"][0]["file_name"] = r"left\a.jpg"
    content["images"][1]["file_name"] = r"left\b.jpg"
    path.write_text(json.dumps(content))
    names = ["left/a.jpg", r"left\b.jpg", "c.jpg"]
    assert found(coco_uri(path, images)) == [str(images / name) for name in names]


def test_names_may_hold_spaces_and_the_flags_of_one_class_are_no_part_of_them(
    tmp_path: Path,
) -> None:
    root = write_voc(tmp_path / "voc", {"my cell": BOX, "scan 1": BOX, "x": BOX, "y": BOX})
    split = root / "ImageSets" / "Main" / "train.txt"
    for lines, names in (
        ("my cell\n scan 1 \n\nx\ny\n", ["my cell", "scan 1", "x", "y"]),
        ("my cell  1\nx -1\ny  0\n", ["my cell", "x", "y"]),
        ("scan 1\n", ["scan 1"]),
        ("x.jpg\nmy cell.jpg\n", ["x", "my cell"]),
    ):
        split.write_text(lines)
        assert [Path(path).stem for path in found(voc_uri(root, "train"))] == names
        assert [r.image_id for r in load_dataset(voc_uri(root, "train")).records] == names


@pytest.mark.parametrize("names", [("cam", "cam 1"), ("frame 0", "frame 1")])
def test_a_name_that_ends_as_a_flag_does_never_stands_for_another_image(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    root = write_voc(tmp_path / "voc", dict.fromkeys(("cam", "frame", *names), BOX))
    split = root / "ImageSets" / "Main" / "train.txt"
    split.write_text("".join(f"{name}\n" for name in names))
    assert [Path(path).stem for path in found(voc_uri(root, "train"))] == list(names)
    for name in names:
        if " " in name:
            (root / "JPEGImages" / f"{name}.jpg").unlink()
    assert image_files(voc_uri(root, "train"))[1] == [f"{name}.jpg" for name in names]
    with pytest.raises(InputError, match=r" \d\.jpg does not exist"):
        load_dataset(voc_uri(root, "train"))


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".JPG", ".Tif"])
def test_an_image_may_have_any_suffix(tmp_path: Path, suffix: str) -> None:
    root = write_voc(tmp_path / "voc", {"x.1": BOX}, suffix=suffix)
    (root / "JPEGImages" / "x.1.txt").write_text("no image")
    assert found(voc_uri(root, "train")) == [str(root / "JPEGImages" / f"x.1{suffix}")]


def test_of_several_files_of_a_name_the_jpeg_is_taken(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"x": BOX})
    for suffix in (".png", ".bmp"):
        write_image(root / "JPEGImages" / f"x{suffix}")
    assert [Path(path).name for path in found(voc_uri(root, "train"))] == ["x.jpg"]


def test_a_split_may_be_named_by_its_file(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"x": BOX})
    assert found(f"voc://{root}?split=train.txt") == found(voc_uri(root, "train"))
    assert load_dataset(f"voc://{root}?split=train.txt").uri == voc_uri(root, "train")


def test_absolute_names_and_names_in_sub_folders_stand_for_themselves(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"x": BOX})
    (root / "Annotations" / "2008").mkdir()
    (root / "Annotations" / "x.xml").rename(root / "Annotations" / "2008" / "x.xml")
    write_image(root / "JPEGImages" / "2008" / "x.png")
    (root / "ImageSets" / "Main" / "train.txt").write_text("2008/x\n")
    assert found(voc_uri(root, "train")) == [str(root / "JPEGImages" / "2008" / "x.png")]
    content = coco_content()
    write_image(tmp_path / "elsewhere" / "a.jpg")
    path, images = write_coco(tmp_path / "coco", content)
    content["images"][0]["file_name"] = str(tmp_path / "elsewhere" / "a.jpg")
    path.write_text(json.dumps(content))
    assert found(coco_uri(path, images))[0] == str(tmp_path / "elsewhere" / "a.jpg")


def test_a_relative_folder_and_one_in_the_home_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_voc(tmp_path / "voc", {"x": BOX})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = [str(root / "JPEGImages" / "x.jpg")]
    assert found("voc://voc?split=train") == found("voc://~/voc?split=train") == expected


def test_the_metric_of_a_detection_set_is_no_matter_to_pre_training(tmp_path: Path) -> None:
    uri = voc_uri(write_voc(tmp_path / "voc", {"x": BOX}), "train")
    assert found(f"{uri}&metric=2007") == found(uri)


def test_images_are_listed_without_annotations_and_missing_ones_too(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"y": BOX, "x": BOX})
    for file in (root / "Annotations").iterdir():
        file.unlink()
    (root / "Annotations").rmdir()
    split = root / "ImageSets" / "Main" / "train.txt"
    split.write_text("y\ngone\nx\n")
    folder, names = image_files(voc_uri(root, "train"))
    assert (folder, names) == (str(root / "JPEGImages"), ["y.jpg", "gone.jpg", "x.jpg"])
    path, images = write_coco(tmp_path / "coco", coco_content())
    path.write_text(json.dumps({"images": [{"file_name": n} for n in ("b.jpg", "z.jpg")]}))
    assert image_files(coco_uri(path, images)) == (str(images), ["b.jpg", "z.jpg"])
    for uri in (voc_uri(root, "train"), coco_uri(path, images)):
        assert len(list_images(uri)) == len(image_files(uri)[1])
        with pytest.raises(InputError):
            load_dataset(uri)


def test_what_is_not_there_is_named_alike(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", {"x": BOX})
    path, images = write_coco(tmp_path / "coco", coco_content())
    for uri, reason in (
        (voc_uri(tmp_path / "none", "train"), "none does not exist"),
        (voc_uri(root, "val"), r"val\.txt does not exist: choose one of train"),
        (coco_uri(path, tmp_path / "none"), "image folder .*none does not exist"),
        (coco_uri(tmp_path / "none.json", images), r"none\.json does not exist"),
        (f"voc://{root}", r"write it as voc://DIR\?split=train"),
        (f"coco://{path}?split=train", r"write it as coco://FILE\.json\?images=DIR"),
    ):
        for read in (load_dataset, list_images):
            with pytest.raises(InputError, match=reason):
                read(uri)
