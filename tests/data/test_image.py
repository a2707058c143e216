"""Reading images, and finding the broken ones of a data set."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_det.data import check_images, image_size, read_image, read_voc
from moco_det.data.image import image_fault
from moco_det.foundation.errors import InputError
from tests.data.builders import write_image, write_voc


def _ramp(height: int = 4, width: int = 6) -> np.ndarray:
    return np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)


def test_rgb_and_bgr_are_each_other_reversed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(_ramp()).save(path)
    rgb, bgr = read_image(str(path)), read_image(str(path), "BGR")
    assert np.array_equal(rgb, _ramp()) and np.array_equal(bgr, _ramp()[:, :, ::-1])
    assert bgr.flags["C_CONTIGUOUS"] and rgb.flags["WRITEABLE"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    # how EXIF 2.3 says the stored rows and columns are to be shown
    stored = _ramp()
    shown = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: stored.transpose(1, 0, 2)[:, ::-1],
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: stored.transpose(1, 0, 2)[::-1],
    }[orientation]
    image = Image.fromarray(stored)
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    path = str(tmp_path / "a.png")
    assert np.array_equal(read_image(path), shown)
    assert image_size(path) == shown.shape[:2]


def test_grayscale_and_palette_become_three_channels(tmp_path: Path) -> None:
    gray = _ramp()[:, :, 0]
    Image.fromarray(gray).save(tmp_path / "g.png")
    assert np.array_equal(read_image(str(tmp_path / "g.png")), np.stack([gray] * 3, axis=2))
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="L").convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60] + [0] * 762)
    palette.save(tmp_path / "p.png")
    assert read_image(str(tmp_path / "p.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_broken_images_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "whole.jpg", 64, 64)
    content = (tmp_path / "whole.jpg").read_bytes()
    broken = {
        "cut.jpg": content[: len(content) // 2],
        "empty.jpg": b"",
        "page.jpg": b"<html>not found</html>",
    }
    for name, data in broken.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name} does not open"):
            read_image(str(tmp_path / name))
    with pytest.raises(InputError, match="none.jpg does not exist"):
        read_image(str(tmp_path / "none.jpg"))


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_samples_of_more_than_eight_bits_are_refused_not_clipped(
    tmp_path: Path, kind: type
) -> None:
    path = str(tmp_path / "deep.tif")
    Image.fromarray(np.full((4, 6), 1000, kind)).save(path)
    with pytest.raises(InputError, match="deep.tif .*more than eight bits"):
        read_image(path)
    fault = image_fault(path, 4, 6)
    assert fault is not None and "more than eight bits" in fault


def _voc_of(tmp_path: Path, count: int) -> Path:
    names = {f"i{n:02d}": [("c", 1, 1, 9, 9)] for n in range(count)}
    return write_voc(tmp_path / "set", names)


def _truncate(root: Path, name: str) -> None:
    path = root / "JPEGImages" / f"{name}.jpg"
    path.write_bytes(path.read_bytes()[:-300])


def test_one_broken_image_is_skipped_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = _voc_of(tmp_path, 12)
    _truncate(root, "i03")
    dataset = read_voc(root, "train")
    with caplog.at_level(logging.WARNING):
        checked = check_images(dataset, progress=False)
    assert len(checked) == 11 and "i03" not in [r.image_id for r in checked.records]
    assert len(checked.skipped) == 1
    assert checked.skipped[0].startswith("1 of 12 images skipped, first: image ")
    assert "i03.jpg" in caplog.text
    assert checked.fingerprint != dataset.fingerprint
    with pytest.raises(InputError, match=r"i03\.jpg .*strict"):
        check_images(dataset, strict=True, progress=False)


def test_more_than_a_tenth_broken_is_an_error(tmp_path: Path) -> None:
    root = _voc_of(tmp_path, 12)
    _truncate(root, "i03")
    _truncate(root, "i05")
    with pytest.raises(InputError, match="2 of 12 images skipped.*more than 10 %"):
        check_images(read_voc(root, "train"), progress=False)


def test_a_size_that_differs_from_the_annotation_is_a_broken_image(tmp_path: Path) -> None:
    root = _voc_of(tmp_path, 12)
    write_image(root / "JPEGImages" / "i04.jpg", 21, 30)
    checked = check_images(read_voc(root, "train"), progress=False)
    assert len(checked) == 11
    assert "i04.jpg is 30x21 pixels, its annotation says 30x20" in checked.skipped[0]


def test_a_whole_data_set_is_returned_as_it_is(tmp_path: Path) -> None:
    dataset = read_voc(_voc_of(tmp_path, 3), "train")
    assert check_images(dataset, strict=True, progress=False) is dataset


def test_the_sample_photos_are_all_whole(data_root: Path) -> None:
    for folder, split in (("voc_bccd", "test"), ("voc2012_sample", "val")):
        check_images(read_voc(data_root / folder, split), strict=True, progress=False)


@pytest.mark.detectron2
def test_pixels_equal_those_of_detectron2(data_root: Path) -> None:
    utils = pytest.importorskip("detectron2.data.detection_utils")
    files = sorted((data_root / "coco2017_sample" / "val2017").glob("*.jpg"))
    assert len(files) == 64
    for file in files:
        for name in ("RGB", "BGR"):
            assert np.array_equal(read_image(str(file), name), utils.read_image(str(file), name))
