"""The procedural data set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest

from moco_det.data import (
    Annotation,
    DetectionDataset,
    Record,
    check_images,
    load_dataset,
    read_image,
)
from moco_det.data.crops import BACKGROUND, write_crops, write_image_list
from moco_det.data.image import write_jpeg
from moco_det.data.masks import mask_polygons
from moco_det.data.scene_painter import Scene, paint_close_up, paint_scene
from moco_det.data.scene_shapes import CLASSES, FORMS, SURFACES
from moco_det.data.scenes import SCENE_CLASSES, ScenesPaths, scene_rng, write_scenes
from moco_det.foundation.errors import InputError
from tests.data.builders import digests


def _write(root: Path, seed: int = 0, **changes) -> ScenesPaths:
    sizes = {"unlabelled": 4, "train": 12, "test": 5, **changes}
    return write_scenes(root, seed=seed, size=64, progress=False, **sizes)


def scene(seed: int, split: str, index: int, size: int = 128) -> Scene:
    return paint_scene(scene_rng(seed, split, index), size, SCENE_CLASSES, (1, 5))


def close_up(seed: int, index: int, size: int = 64) -> np.ndarray:
    return paint_close_up(scene_rng(seed, "unlabelled", index), size, SCENE_CLASSES)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> ScenesPaths:
    return _write(tmp_path_factory.mktemp("scenes") / "set")


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    paths: ScenesPaths, tmp_path: Path
) -> None:
    first, again = digests(paths.root), digests(_write(tmp_path / "again").root)
    other = digests(_write(tmp_path / "other", seed=1).root)
    assert first == again and set(first) == set(other)
    images = [name for name in first if name.endswith(".jpg")]
    assert len(images) == 4 + 2 * (12 + 5)
    # a folder of pictures alone: nothing says what is on them
    assert sum(name.startswith("unlabelled/") for name in first) == 4
    assert all(first[name] != other[name] for name in images)


def test_more_images_do_not_change_the_first_ones(paths: ScenesPaths, tmp_path: Path) -> None:
    first, more = digests(paths.root), digests(_write(tmp_path / "more", unlabelled=6).root)
    assert all(more[name] == digest for name, digest in first.items() if name.endswith(".jpg"))


def test_both_layouts_hold_the_same_boxes(paths: ScenesPaths) -> None:
    for coco_name, voc_name in ((paths.train, paths.voc_train), (paths.test, paths.voc_test)):
        coco = load_dataset(coco_name)
        voc = load_dataset(voc_name, classes=coco.classes)
        assert coco.skipped == voc.skipped == () and coco.has_masks
        assert coco.classes == SCENE_CLASSES
        for a, b in zip(coco.records, voc.records, strict=True):
            assert Path(a.file_name).read_bytes() == Path(b.file_name).read_bytes()
            assert [(x.bbox, x.category) for x in a.annotations] == [
                (x.bbox, x.category) for x in b.annotations
            ]
        check_images(coco, strict=True, progress=False)


def test_polygons_draw_the_visible_mask_and_boxes_are_its_extents(paths: ScenesPaths) -> None:
    content = json.loads(paths.train_json.read_text())
    rows = iter(content["annotations"])
    holes = 0
    for image in content["images"]:
        painted = scene(0, "train", image["id"], size=64)
        for index in range(len(painted.labels)):
            row, mask = next(rows), painted.owner == index + 1
            rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(row["segmentation"], 64, 64))
            assert np.array_equal(pycocotools.mask.decode(rle).astype(bool), mask)
            assert row["bbox"] == pycocotools.mask.toBbox(rle).tolist()
            assert row["area"] == mask.sum()
            assert content["categories"][row["category_id"] - 1]["name"] == painted.labels[index]
            holes += painted.labels[index] == "spoked_ring"
    assert next(rows, None) is None and holes > 0


def test_objects_stay_visible_and_differ_in_size() -> None:
    radii, counts, covered = [], [], 0
    for index in range(60):
        painted = scene(7, "train", index)
        counts.append(len(painted.labels))
        for number in range(1, len(painted.labels) + 1):
            pixels = int((painted.owner == number).sum())
            assert pixels >= 40
            radii.append(pixels**0.5)
        covered += any(painted.truncated)
    assert min(counts) >= 1 and max(counts) == 5 and covered > 3
    assert max(radii) > 3 * min(radii)


def test_every_class_occurs_and_needs_both_form_and_surface() -> None:
    seen = {label for index in range(40) for label in scene(1, "test", index).labels}
    assert seen == set(SCENE_CLASSES)
    forms = [form for form, _ in CLASSES.values()]
    surfaces = [surface for _, surface in CLASSES.values()]
    assert len(set(CLASSES.values())) == len(CLASSES)
    assert set(forms) <= set(FORMS) and set(surfaces) <= set(SURFACES)
    assert len(set(forms)) < len(forms) and len(set(surfaces)) < len(surfaces)


def test_close_ups_hold_one_object_in_their_middle_and_no_label() -> None:
    """Blocks of the middle vary more than those of the corners, where only background is."""
    middle, corners = [], []
    for index in range(60):
        image = close_up(5, index, size=48).astype(np.float64)
        assert image.shape == (48, 48, 3)
        middle.append(image[16:32, 16:32].std())
        corners += [image[y, x].std() for y in (np.s_[:8], np.s_[40:]) for x in (np.s_[:8],)]
    assert np.median(middle) > 2 * np.median(corners)
    assert np.array_equal(close_up(5, 3), close_up(5, 3))
    assert not np.array_equal(close_up(5, 3), close_up(6, 3))


def test_a_subset_of_classes_and_objects(tmp_path: Path) -> None:
    chosen = ("striped_disk", "ringed_star")
    made = _write(tmp_path / "set", classes=chosen, objects=(2, 2))
    dataset = load_dataset(made.train)
    assert dataset.classes == chosen
    assert max(len(record.annotations) for record in dataset.records) == 2


def test_a_finished_folder_is_left_and_another_content_refused(
    paths: ScenesPaths, tmp_path: Path
) -> None:
    before = paths.train_json.stat().st_mtime_ns
    assert _write(paths.root) == paths and paths.train_json.stat().st_mtime_ns == before
    with pytest.raises(InputError, match="already exists"):
        _write(paths.root, seed=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not an empty folder"):
        _write(tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_outlines_of_any_mask_draw_it_back(share: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        mask = rng.random((11, 13)) < share
        polygons = mask_polygons(mask)
        rle = pycocotools.mask.merge(pycocotools.mask.frPyObjects(polygons, 11, 13))
        assert np.array_equal(pycocotools.mask.decode(rle).astype(bool), mask)


def test_outlines_by_hand() -> None:
    mask = np.zeros((5, 6), bool)
    assert mask_polygons(mask) == []
    mask[1:3, 2:5] = True
    (polygon,) = mask_polygons(mask)
    corners = {tuple(polygon[i : i + 2]) for i in range(0, len(polygon), 2)}
    assert corners == {(2.0, 1.0), (5.0, 1.0), (5.0, 3.0), (2.0, 3.0)} and len(polygon) == 8


def test_crops_lie_in_class_folders_and_are_counted(paths: ScenesPaths, tmp_path: Path) -> None:
    dataset = load_dataset(paths.train)
    counts = write_crops(dataset, tmp_path / "crops", minimum=8, progress=False)
    large = [
        a
        for r in dataset.records
        for a in r.annotations
        if min(a.bbox[2] - a.bbox[0], a.bbox[3] - a.bbox[1]) >= 8
    ]
    assert sum(counts.values()) == len(large) > 0 and set(counts) == set(dataset.classes)
    for name, count in counts.items():
        assert len(list((tmp_path / "crops" / name).glob("*.jpg"))) == count
    with pytest.raises(InputError, match="already exists"):
        write_crops(dataset, tmp_path / "crops", progress=False)
    with pytest.raises(InputError, match="lower the minimum"):
        write_crops(dataset, tmp_path / "none", minimum=500, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["crops"]


def test_a_crop_has_its_context_and_stops_at_the_image(tmp_path: Path) -> None:
    from moco_det.data import read_image, read_voc
    from tests.data.builders import write_voc

    boxes = [("a/b", 11, 6, 20, 10), ("a/b", 1, 1, 10, 20), ("a/b", 3, 3, 22, 18, 1)]
    root = write_voc(tmp_path / "set", {"x": boxes}, suffix=".png")
    dataset = read_voc(root, "train")
    assert write_crops(dataset, tmp_path / "crops", minimum=5, progress=False) == {"a/b": 2}
    first, second = (
        read_image(str(tmp_path / "crops" / "a%2Fb" / f"x_{n}.jpg")).shape for n in (0, 1)
    )
    assert first == (5 + 2 + 2, 10 + 2 + 2, 3)  # 10 x 5 px, 0.2 x 10 on each side
    assert second == (20, 10 + 4, 3)


def test_the_image_list_names_absolute_paths(paths: ScenesPaths, tmp_path: Path) -> None:
    dataset = load_dataset(paths.train)
    assert write_image_list(dataset, tmp_path / "list.txt") == 12
    lines = (tmp_path / "list.txt").read_text().splitlines()
    assert lines == [record.file_name for record in dataset.records]
    assert all(Path(line).is_absolute() and Path(line).is_file() for line in lines)


def test_background_crops_touch_no_object_not_even_one_that_is_difficult(tmp_path: Path) -> None:
    corners = [(x, y) for x in range(0, 250, 50) for y in range(0, 250, 50)]
    picture = np.zeros((250, 250, 3), np.uint8)
    objects = []
    for n, (x, y) in enumerate(corners):
        picture[y : y + 20, x : x + 20] = 255
        objects.append(Annotation((x, y, x + 20.0, y + 20.0), 0, difficult=n % 5 == 0))
    file = tmp_path / "a.jpg"
    write_jpeg(file, picture)
    record = Record(1, str(file), 250, 250, tuple(objects))
    dataset = DetectionDataset("set", "set", (record,), ("cell",), (1,))
    folder = tmp_path / "crops"
    counts = write_crops(dataset, folder, background=True, progress=False)
    assert counts["cell"] == 20 and counts[BACKGROUND] >= 15
    for crop in (folder / BACKGROUND).iterdir():
        pixels = read_image(str(crop))
        assert min(pixels.shape[:2]) >= 16 and pixels.mean() < 8  # but for what JPEG smears
    whole = replace(record, annotations=(Annotation((0.0, 0.0, 250.0, 250.0), 0),))
    filled = replace(dataset, records=(whole,))
    counts = write_crops(filled, tmp_path / "filled", background=True, progress=False)
    assert counts == {"cell": 1, BACKGROUND: 0}
