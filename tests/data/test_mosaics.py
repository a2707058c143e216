"""Sets made from photos with one box each."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_det.data import check_images, load_dataset, read_image
from moco_det.data.mosaics import MosaicPaths, arrange, mosaic_rng, write_mosaics
from moco_det.foundation.errors import InputError
from tests.data.builders import digests

CLASSES, PHOTOS, SIDE, SIZE = 6, 36, 32, 96
# name of a photo -> its class, its box with exclusive ends, its pixels
Photos = dict[str, tuple[str, tuple[int, int, int, int], np.ndarray]]


def write_tree(root: Path, photos: int = PHOTOS) -> Path:
    """Photos of a bright rectangle on a dark ground of blocks; every third is greyscale."""
    rng = np.random.default_rng(0)
    for number in range(CLASSES):
        name, lines = f"n{number:03d}", []
        images = root / "train" / name / "images"
        images.mkdir(parents=True)
        for n in range(photos):
            pixels = rng.integers(0, 60, (4, 4, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            (x0, y0), (w, h) = rng.integers(0, SIDE - 20, 2), rng.integers(8, 20, 2)
            pixels[y0 : y0 + h, x0 : x0 + w] = rng.integers(220, 256)
            stored = Image.fromarray(pixels)
            (stored.convert("L") if n % 3 == 0 else stored).save(images / f"{name}_{n}.JPEG")
            lines.append(f"{name}_{n}.JPEG\t{x0}\t{y0}\t{x0 + w - 1}\t{y0 + h - 1}\n")
        (root / "train" / name / f"{name}_boxes.txt").write_text("".join(lines))
    return root


def read_tree(root: Path) -> Photos:
    found: Photos = {}
    for listed in root.glob("train/*/*_boxes.txt"):
        for line in listed.read_text().splitlines():
            name, *corners = line.split("\t")
            x0, y0, x1, y1 = map(int, corners)
            pixels = read_image(str(listed.parent / "images" / name))
            found[name] = (listed.parent.name, (x0, y0, x1 + 1, y1 + 1), pixels)
    return found


def write(tree: Path, out: Path, seed: int = 0, **changes) -> MosaicPaths:
    sizes = {"pretrain": 6, "unseen": 1, "classes": 4, "train": 5, "test": 4, "probe": (3, 2)}
    return write_mosaics(tree, out, seed=seed, size=SIZE, progress=False, **(sizes | changes))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("photos") / "tiny")


@pytest.fixture(scope="module")
def paths(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> MosaicPaths:
    return write(tree, tmp_path_factory.mktemp("mosaics") / "set")


def small(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((12, 12)), dtype=np.float64)


def photos_of(name: str, split: str, photos: Photos) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Per mosaic of a set, the photo that each of its cells looks like most, and the cell."""
    known, shrunk = list(photos), np.stack([small(pixels) for _, _, pixels in photos.values()])
    found = []
    for number, record in enumerate(load_dataset(name).records, start=1):
        image, cells = read_image(record.file_name), arrange(mosaic_rng(0, split, number), SIZE)
        likest = [
            int(np.abs(shrunk - small(image[y0:y1, x0:x1])).mean(axis=(1, 2, 3)).argmin())
            for x0, y0, x1, y1 in cells
        ]
        found.append([(known[i], cell) for i, cell in zip(likest, cells, strict=True)])
    return found


def test_the_same_arguments_give_the_same_bytes_and_another_seed_does_not(
    tree: Path, paths: MosaicPaths, tmp_path: Path
) -> None:
    first, again = digests(paths.root), digests(write(tree, tmp_path / "again").root)
    other = digests(write(tree, tmp_path / "other", seed=1).root)
    assert first == again
    mosaics = [name for name in first if name.startswith("coco/t")]
    assert len(mosaics) == 9 and all(first[name] != other[name] for name in mosaics)


def test_neither_more_photos_nor_unseen_classes_change_mosaics_and_probes(
    tree: Path, paths: MosaicPaths, tmp_path: Path
) -> None:
    first = digests(paths.root)
    more = digests(write(tree, tmp_path / "more", pretrain=8, unseen=0).root)
    grown = digests(write(tree, tmp_path / "grown", train=6).root)
    kept = [name for name in first if not name.startswith(("unseen/", "mosaics.json"))]
    assert kept and all(more[name] == first[name] for name in kept)
    assert sum(name.startswith("photos/") for name in more) == 8 * CLASSES
    tested = [name for name in kept if not name.startswith(("coco/", "voc/")) or "test" in name]
    assert all(grown[name] == first[name] for name in tested)


def test_no_photo_is_in_two_parts_or_twice_in_one(tree: Path, paths: MosaicPaths) -> None:
    photos = read_tree(tree)
    contents = {
        hashlib.sha256((tree / "train" / label / "images" / name).read_bytes()).hexdigest(): name
        for name, (label, _, _) in photos.items()
    }
    used = [
        contents[digest] for name, digest in digests(paths.root).items() if name.endswith(".JPEG")
    ]
    assert len(used) == (6 + 5) * 5 + 5
    for name, split in ((paths.train, "train"), (paths.test, "test")):
        used += [photo for mosaic in photos_of(name, split, photos) for photo, _ in mosaic]
    assert len(used) > 60 + 9 * 4 and max(Counter(used).values()) == 1


def test_folders_hold_the_photos_asked_of_seen_and_unseen_classes(
    tree: Path, paths: MosaicPaths
) -> None:
    def counts(folder: Path | None) -> dict[str, int]:
        assert folder is not None
        return {path.name: len(list(path.iterdir())) for path in folder.iterdir()}

    (unseen,) = counts(paths.unseen_train)
    seen = sorted({f"n{n:03d}" for n in range(CLASSES)} - {unseen})
    assert counts(paths.photos) == dict.fromkeys(seen, 6)
    assert counts(paths.probe_train) == dict.fromkeys(seen, 3)
    assert counts(paths.probe_test) == dict.fromkeys(seen, 2)
    assert counts(paths.unseen_train) == {unseen: 3} and counts(paths.unseen_test) == {unseen: 2}
    assert len(paths.classes) == 4 and set(paths.classes) < set(seen)
    for copied in paths.root.rglob("*.JPEG"):
        original = tree / "train" / copied.parent.name / "images" / copied.name
        assert copied.read_bytes() == original.read_bytes()


def test_every_photo_of_a_mosaic_is_annotated_with_its_class_and_its_box(
    tree: Path, paths: MosaicPaths
) -> None:
    photos = read_tree(tree)
    for name, split in ((paths.train, "train"), (paths.test, "test")):
        dataset = load_dataset(name)
        assert all(len({a.category for a in r.annotations}) > 1 for r in dataset.records)
        for record, cells in zip(dataset.records, photos_of(name, split, photos), strict=True):
            for annotation, (photo, cell) in zip(record.annotations, cells, strict=True):
                label, box, _ = photos[photo]
                assert dataset.classes[annotation.category] == label
                left, top, right, bottom = cell
                scale = np.array([right - left, bottom - top] * 2) / SIDE
                exact = np.array([left, top] * 2) + scale * box
                beyond = (annotation.bbox - exact) * [-1, -1, 1, 1]
                assert beyond.min() > -1e-9 and beyond.max() < 1


def test_boxes_lie_where_the_objects_are(paths: MosaicPaths) -> None:
    for record in load_dataset(paths.train).records:
        image = read_image(record.file_name).max(axis=2)
        outside = np.ones_like(image, dtype=bool)
        for x0, y0, x1, y1 in (np.array(a.bbox).astype(int) for a in record.annotations):
            assert image[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].min() > 128
            outside[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
        assert outside.any() and image[outside].max() < 128


def test_both_layouts_hold_the_same_boxes(paths: MosaicPaths) -> None:
    for coco_name, voc_name in ((paths.train, paths.voc_train), (paths.test, paths.voc_test)):
        coco = load_dataset(coco_name)
        voc = load_dataset(voc_name, classes=coco.classes)
        assert coco.skipped == voc.skipped == () and coco.classes == paths.classes
        for a, b in zip(coco.records, voc.records, strict=True):
            assert Path(a.file_name).read_bytes() == Path(b.file_name).read_bytes()
            assert a.annotations
            assert [(x.bbox, x.category) for x in a.annotations] == [
                (x.bbox, x.category) for x in b.annotations
            ]
        check_images(coco, strict=True, progress=False)


def test_cells_fill_the_square_at_several_scales() -> None:
    sides, ends = [], []
    for number in range(200):
        filled, cells = np.zeros((192, 192), int), arrange(mosaic_rng(0, "train", number), 192)
        ends.append([len({cell[axis] for cell in cells}) for axis in (2, 3)])
        for x0, y0, x1, y1 in cells:
            filled[y0:y1, x0:x1] += 1
            sides += [x1 - x0, y1 - y0]
            assert max(sides[-2:]) <= 1.6 * min(sides[-2:])
        assert (filled == 1).all()
    assert min(sides) >= 0.18 * 192 and max(sides) <= 0.6 * 192 and max(sides) > 2.5 * min(sides)
    assert np.min(ends, axis=0).tolist() == [2, 2]  # rows as well as columns
    assert np.max(ends, axis=0).min() > 4


def test_photos_that_cannot_be_used_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = write_tree(tmp_path / "tree", photos=12)
    folder = tree / "train" / "n000"
    listed, images = folder / "n000_boxes.txt", folder / "images"
    lines = [line.split("\t") for line in listed.read_text().splitlines()]
    lines[0][3] = lines[0][1]  # no width
    lines[1][3], lines[6][4] = str(SIDE), str(SIDE)  # beyond the photo
    (images / "n000_2.JPEG").write_bytes((images / "n000_2.JPEG").read_bytes()[:200])
    shutil.copyfile(images / "n000_4.JPEG", images / "n000_3.JPEG")
    del lines[5]  # no box
    lines.append(["../../n001/images/n001_0.JPEG", "1", "1", "9", "9"])
    listed.write_text("".join("\t".join(line) + "\n" for line in lines))
    none = {"unseen": 0, "classes": 1, "train": 0, "test": 0}
    # of this seed: drawing comes upon every one of them
    paths = write(tree, tmp_path / "set", seed=6, pretrain=1, **none)
    used = {path.name for path in paths.root.rglob("n000/*.JPEG")}
    bad = {f"n000_{n}.JPEG" for n in (0, 1, 2, 5, 6)}
    assert len(used) == 6 == 12 - 6 and not used & bad
    assert len(used & {"n000_3.JPEG", "n000_4.JPEG"}) == 1
    assert "6 photos of" in caplog.text
    with pytest.raises(InputError, match="n000 has 6 photos .* and 7 are asked of it: lower pret"):
        write(tree, tmp_path / "more", pretrain=2, **none)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "tree"]


def test_a_finished_folder_is_left_and_another_source_or_argument_refused(
    tree: Path, paths: MosaicPaths, tmp_path: Path
) -> None:
    recipe = paths.root / "mosaics.json"
    before = recipe.stat().st_mtime_ns
    assert write(tree, paths.root) == paths and recipe.stat().st_mtime_ns == before
    assert json.loads(recipe.read_text())["source"]["photos"] == CLASSES * PHOTOS
    with pytest.raises(InputError, match="already exists"):
        write(tree, paths.root, pretrain=7)
    with pytest.raises(InputError, match="already exists"):
        write(write_tree(tmp_path / "fewer", photos=35), paths.root)


@pytest.mark.parametrize(
    ("gone", "changes", "message"),
    [
        ("train", {}, "train does not exist: check the path .*train/<class>/images"),
        ("train/*", {}, "train has no folders of classes"),
        ("train/n002/images", {}, "n002/images does not exist"),
        ("train/n002/n002_boxes.txt", {}, "n002_boxes.txt does not exist"),
        ("", {"classes": 6}, "has 6 classes, fewer than the 6 of the mosaics and 1 unseen"),
        ("", {"pretrain": 40}, "has 36 photos that can be used and .* asked of it: lower pretrain"),
        ("", {"train": 40}, "photos that can be used and .* lower train or test, or raise classes"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    gone: str, changes: dict[str, int], message: str, tree: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(tree, tmp_path / "tree")
    for path in copy.glob(gone) if gone else ():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=message) as caught:
        write(copy, tmp_path / "set", **changes)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
