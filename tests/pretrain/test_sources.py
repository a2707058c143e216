"""What DATA.PATH may name, images of all kinds, and paths in little memory."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from moco_det.foundation.errors import InputError
from pretrain import augment, data
from pretrain.data.listing import PathList
from pretrain.images import read_image

from .conftest import write_images


def test_class_folders_give_labels_in_the_order_of_names(class_folders: Path) -> None:
    images = data.list_images(str(class_folders))
    assert images.classes == ["cat", "dog"] and len(images) == 24
    assert images.labels is not None and images.labels.tolist() == [0] * 12 + [1] * 12


def test_a_folder_with_images_of_its_own_has_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    write_images(tmp_path / "more", 2)
    images = data.list_images(str(tmp_path))
    assert len(images) == 4 and images.labels is None


def test_a_link_that_leads_back_is_not_followed_for_ever(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 2)
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    assert len(data.list_images(str(tmp_path))) == 2


def test_a_text_list_is_read_relative_to_itself_with_and_without_classes(
    class_folders: Path, tmp_path: Path
) -> None:
    write_images(tmp_path / "x", 3)
    plain = tmp_path / "plain.txt"
    plain.write_text("x/000.jpg\n\nx/001.jpg\n")
    assert [Path(p).name for p in data.list_images(str(plain)).paths] == ["000.jpg", "001.jpg"]
    labelled = tmp_path / "labelled.txt"
    labelled.write_text("x/000.jpg\tb\nx/001.jpg\ta\n")
    images = data.list_images(str(labelled))
    assert images.classes == ["a", "b"] and images.labels is not None
    assert images.labels.tolist() == [1, 0]
    labelled.write_text("x/000.jpg\tb\nx/001.jpg\n")
    with pytest.raises(InputError, match="every line"):
        data.list_images(str(labelled))


@pytest.mark.parametrize("kind", ["", "missing", "empty_folder", "empty_list"])
def test_nothing_to_read_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "empty_list").write_text("")
    with pytest.raises(InputError, match="DATA.PATH"):
        data.list_images(str(tmp_path / kind) if kind else "")


def test_images_are_read_as_rgb(tmp_path: Path) -> None:
    bgr = np.zeros((8, 8, 3), dtype=np.uint8)
    bgr[..., 2] = 200  # red in OpenCV's order
    cv2.imwrite(str(tmp_path / "red.png"), bgr)
    assert read_image(str(tmp_path / "red.png"))[0, 0].tolist() == [200, 0, 0]
    cv2.imwrite(str(tmp_path / "gray.png"), bgr[..., 2])
    assert read_image(str(tmp_path / "gray.png")).shape == (8, 8, 3)


def test_shorter_side_shrinks_and_never_enlarges(tmp_path: Path) -> None:
    write_images(tmp_path, 1, shape=(40, 60))
    path = str(tmp_path / "000.jpg")
    assert read_image(path, shorter_side=20).shape == (20, 30, 3)
    assert read_image(path, shorter_side=100).shape == (40, 60, 3)


def test_a_jpeg_with_trailing_bytes_is_whole(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    path = tmp_path / "000.jpg"
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert read_image(str(path)).shape == (40, 48, 3)


def names(images: data.ImageList) -> list[str]:
    return [os.path.basename(path) for path in images.paths]


def test_a_folder_called_like_an_image_is_a_folder_and_a_pipe_is_none(tmp_path: Path) -> None:
    write_images(tmp_path / "x.jpg", 2)
    os.mkfifo(tmp_path / "x.jpg" / "pipe.jpg")
    assert names(data.list_images(str(tmp_path))) == ["000.jpg", "001.jpg"]


def test_a_link_to_nothing_is_listed_so_that_it_is_counted(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    os.symlink(tmp_path / "gone.jpg", tmp_path / "link.jpg")
    assert names(data.list_images(str(tmp_path))) == ["000.jpg", "link.jpg"]


def test_files_that_are_left_out_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path / "a", 1)
    for name in ("a/one.GIF", "a/two.gif", "a/notes", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level(logging.INFO):
        assert names(data.list_images(str(tmp_path))) == ["000.jpg"]
    assert ".gif 2, no ending 1" in caplog.text and "hidden" not in caplog.text


def test_images_beside_class_folders_cost_the_classes_and_that_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "cat", 2)
    write_images(tmp_path, 1)
    assert data.list_images(str(tmp_path)).labels is None
    assert "1 images outside its sub-folders" in caplog.text


def test_a_folder_that_may_not_be_read_is_no_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "open", 1)
    (tmp_path / "closed").mkdir()
    scan = os.scandir

    def refuse(path: str) -> object:  # as root every folder can be read
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="KNN.TEST .*folder closed: Permission denied"):
        data.list_images(str(tmp_path), key="KNN.TEST")


def test_a_text_list_may_come_from_windows_and_name_absolute_paths(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    write_images(tmp_path / "my cat", 1)
    listing = tmp_path / "list.txt"
    text = f"000.jpg\r\n{tmp_path / '001.jpg'}\r\nmy cat\\000.jpg\r\n"
    for encoding in ("utf-8-sig", "utf-16"):
        listing.write_text(text, encoding=encoding, newline="")
        assert list(data.list_images(str(listing)).paths) == [
            str(tmp_path / name) for name in ("000.jpg", "001.jpg", "my cat/000.jpg")
        ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a.jpg\n\nb.jpg\tx\n", "line 3: every line"),
        ("a.jpg\tx\ty\n", "line 1: every line"),
        ("gone.jpg\nalso.jpg\n", r"gone\.jpg does not exist"),
        ("\xff\xd8", r"list\.txt is not UTF-8 text"),
    ],
)
def test_a_text_list_with_a_fault_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=reason):
        data.list_images(str(tmp_path / "list.txt"))


def test_listed_images_that_are_missing_or_folders_are_counted_when_they_are_read(
    tmp_path: Path,
) -> None:
    write_images(tmp_path, 1)
    (tmp_path / "dir.jpg").mkdir()
    (tmp_path / "list.txt").write_text("gone.jpg\n000.jpg\ndir.jpg\n")
    images = data.list_images(str(tmp_path / "list.txt"))
    spec = data.ViewSpec(augment.RECIPES["crop_flip"], size=32, views=1, seed=0)
    views = data.ViewSet(images, spec)
    assert views[(0, 0)][3] == [(str(tmp_path / "gone.jpg"), "No such file or directory")]
    assert [reason for _, reason in views[(0, 2)][3]] == [
        "it is a directory",
        "No such file or directory",
    ]


def coco_set(root: Path, content: str) -> str:
    write_images(root / "photos", 3)
    (root / "instances.json").write_text(content)
    return f"coco://{root / 'instances.json'}?images={root / 'photos'}"


def test_a_coco_file_gives_its_images_wherever_the_list_stands(tmp_path: Path) -> None:
    records = [{"id": 7, "file_name": "002.jpg"}, {"id": 1, "file_name": "000.jpg"}]
    decoy = [{"id": 3, "note": 'the "images": [', "images": ["a.jpg"]}]
    path = coco_set(tmp_path, json.dumps({"annotations": decoy, "images": records}, indent=1))
    images = data.list_images(path)
    assert names(images) == ["002.jpg", "000.jpg"] and images.labels is None


@pytest.mark.parametrize(
    "content", ["{}", "[1]", "no json", '{"images": [{"id": 1}]}', '{"images": [{"file_name": "a']
)
def test_a_file_without_coco_images_is_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"instances\.json has no list of images"):
        data.list_images(coco_set(tmp_path, content))


def test_a_set_without_images_is_refused_and_its_key_named(tmp_path: Path) -> None:
    path = coco_set(tmp_path, '{"images": []}')
    with pytest.raises(InputError, match=r"DATA\.PATH coco.*has no images"):
        data.list_images(path)
    with pytest.raises(InputError, match=r"KNN\.TEST coco.*photos2 does not exist"):
        data.list_images(path + "2", key="KNN.TEST")


def test_shards_are_no_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names shards"):
        data.list_images(str(tmp_path / "a-{000..009}.tar"))


def test_a_path_list_is_a_sequence_in_little_memory() -> None:
    inside = ["a/1.jpg", "b/\udcff.png", "/elsewhere/é.jpg"]  # the second is no valid UTF-8
    paths = PathList("/root", inside)
    expected = ["/root/a/1.jpg", "/root/b/\udcff.png", "/elsewhere/é.jpg"]
    assert list(paths) == paths[:] == expected and paths[-1] == expected[-1]
    assert list(pickle.loads(pickle.dumps(paths))) == expected
    assert expected[2] in paths and "b" not in paths
    with pytest.raises(IndexError):
        paths[3]
    assert len(PathList("x", [])) == 0
    # The characters, and four bytes for where each ends.
    paths = PathList("/root", ["12345678"] * 1000)
    assert len(paths.text) + paths.ends.nbytes == 1000 * (8 + 4)


def photo(shape: tuple[int, int] = (40, 60)) -> Image.Image:
    ramp = np.linspace(20, 230, shape[0] * shape[1]).reshape(*shape, 1)
    return Image.fromarray(np.concatenate([ramp, ramp[::-1], ramp * 0 + 90], 2).astype(np.uint8))


def save_kind(kind: str, path: Path) -> Image.Image:
    """Write a photo in an unusual form; returns what a viewer shows."""
    image = photo()
    if kind == "cmyk.jpg":
        image.convert("CMYK").save(path, quality=95)
    elif kind == "gray.jpg":
        image = image.convert("L")
        image.save(path, quality=95)
    elif kind == "palette.png":
        image = image.quantize(64)
        image.save(path)
    elif kind == "deep.png":
        gray = np.asarray(image.convert("L"))
        cv2.imwrite(str(path), gray.astype(np.uint16) * 257)
        image = Image.fromarray(gray)
    elif kind == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif, quality=95)
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    elif kind == "alpha.webp":
        image.convert("RGBA").save(path, lossless=True)
    else:
        image.save(path, format=path.suffix[1:].upper().replace("JPG", "JPEG"))
    return image.convert("RGB")


KINDS = ("cmyk.jpg", "gray.jpg", "palette.png", "deep.png", "turned.jpg", "alpha.webp", "x.bmp")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_is_read_as_a_viewer_shows_it(kind: str, tmp_path: Path) -> None:
    shown = np.asarray(save_kind(kind, tmp_path / kind)).astype(int)
    (path,) = data.list_images(str(tmp_path)).paths
    read = read_image(path).astype(int)
    assert read.shape == shown.shape
    # Decoders differ by a few levels; a swapped channel or an unturned photo by dozens.
    assert np.abs(read - shown).mean() < 4
