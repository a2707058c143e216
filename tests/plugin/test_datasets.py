"""Our records as detectron2's dictionaries, under the names of a config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_det.data import Annotation, DetectionDataset, Record, load_dataset
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.errors import InputError

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.structures import BoxMode  # noqa: E402

from moco_det.plugin import register_dataset  # noqa: E402
from moco_det.plugin.catalog import register_coco  # noqa: E402
from moco_det.plugin.datasets import (  # noqa: E402
    load_data,
    register,
    to_dicts,
)

RLE = {"size": [4, 6], "counts": "9220003"}
OBJECTS = (
    Annotation((1.0, 2.0, 3.0, 4.0), 1, segmentation=[[1.0, 2.0, 3.0, 2.0, 3.0, 4.0]]),
    Annotation((0.0, 0.0, 6.0, 4.0), 0, iscrowd=True, segmentation=RLE),
    Annotation((0.5, 0.0, 2.0, 1.0), 0),
)
DATASET = DetectionDataset(
    name="two",
    uri="two",
    records=(Record("a7", "/img/a7.jpg", 4, 6, OBJECTS), Record(9, "/img/9.jpg", 4, 6)),
    classes=("cat", "dog"),
    category_ids=(3, 11),
)


def load(paths: ScenesPaths, **changes: object) -> tuple[DetectionDataset, DetectionDataset]:
    arguments = {
        "train": (paths.train,),
        "test": (paths.test,),
        "num_classes": len(paths.classes),
        "with_masks": True,
        "skip_empty": True,
        "strict": False,
        "progress": False,
    }
    return load_data(**{**arguments, **changes})  # type: ignore[arg-type]


def test_records_become_detectron2s_dictionaries() -> None:
    first, second = to_dicts(DATASET)
    assert {k: first[k] for k in ("file_name", "image_id", "height", "width")} == {
        "file_name": "/img/a7.jpg",
        "image_id": "a7",
        "height": 4,
        "width": 6,
    }
    polygon, crowd, bare = first["annotations"]
    assert polygon == {
        "bbox": [1.0, 2.0, 3.0, 4.0],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": [[1.0, 2.0, 3.0, 2.0, 3.0, 4.0]],
    }
    assert (crowd["iscrowd"], crowd["segmentation"]) == (1, RLE)
    assert "segmentation" not in bare
    assert second["annotations"] == []


def test_a_uri_is_registered_with_its_classes_and_may_be_registered_again(
    scenes: ScenesPaths,
) -> None:
    for _ in range(2):
        dataset = register_dataset(scenes.voc_train)
    assert len(DatasetCatalog.get(scenes.voc_train)) == len(dataset) == 12
    assert MetadataCatalog.get(scenes.voc_train).thing_classes == list(dataset.classes)


def test_the_dictionaries_hold_what_detectron2s_own_coco_reader_finds(scenes: ScenesPaths) -> None:
    from detectron2.data.datasets import load_coco_json

    theirs = load_coco_json(str(scenes.train_json), str(scenes.train_images))
    dataset = load_dataset(scenes.train)
    ours = to_dicts(dataset)
    assert [row["file_name"] for row in ours] == [row["file_name"] for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert len(mine["annotations"]) == len(other["annotations"])
        for a, b in zip(mine["annotations"], other["annotations"], strict=True):
            box = BoxMode.convert(b["bbox"], b["bbox_mode"], BoxMode.XYXY_ABS)
            np.testing.assert_allclose(a["bbox"], box, atol=1e-9)
            assert dataset.category_ids[a["category_id"]] == b["category_id"]
            assert a["segmentation"] == b["segmentation"]


def test_detectron2s_own_names_are_read_by_our_readers(
    scenes: ScenesPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "val2017").symlink_to(scenes.test_images)
    (coco / "annotations" / "instances_val2017.json").symlink_to(scenes.test_json)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    before = DatasetCatalog["coco_2017_val"]
    metadata = MetadataCatalog.get("coco_2017_val")
    try:
        register_dataset("coco_2017_val")
        assert len(DatasetCatalog.get("coco_2017_val")) == 4
        assert MetadataCatalog.get("coco_2017_val").thing_classes == list(scenes.classes)
    finally:
        DatasetCatalog["coco_2017_val"] = before
        MetadataCatalog["coco_2017_val"] = metadata


def test_several_data_sets_are_joined_to_one(scenes: ScenesPaths) -> None:
    names = (scenes.train, scenes.test)
    train, test = load(scenes, train=names)
    assert len(train) == 16
    assert len(DatasetCatalog.get(" + ".join(names))) == 16
    assert len(test) == 4


def test_both_engines_and_detectron2s_own_reader_see_the_same_fold(scenes: ScenesPaths) -> None:
    name = f"{scenes.train}&percent=25&fold=3"
    ours = load_dataset(name).records
    train, _ = load(scenes, train=(name,))
    assert train.records == ours and len(ours) == 3
    assert {row["image_id"] for row in DatasetCatalog.get(name)} == {r.image_id for r in ours}
    described = register_coco(name, keypoints=False)
    read_by_detectron2 = DatasetCatalog.get(name)
    assert [row["image_id"] for row in read_by_detectron2] == [
        r.image_id for r in described.records
    ]
    assert described.records == ours


def test_the_test_set_takes_the_classes_of_the_training_set(scenes: ScenesPaths) -> None:
    train, test = load(scenes, test=(scenes.voc_test,), with_masks=False)
    assert load_dataset(scenes.voc_test).classes != train.classes
    assert train.classes == test.classes == tuple(scenes.classes)


def test_a_wrong_number_of_classes_is_an_error(scenes: ScenesPaths) -> None:
    with pytest.raises(InputError, match="NUM_CLASSES is 3"):
        load(scenes, num_classes=3)


def test_masks_are_asked_of_data_that_has_none(scenes: ScenesPaths) -> None:
    with pytest.raises(InputError, match="has no masks"):
        load(scenes, test=(scenes.voc_test,))


def test_one_broken_image_among_many_is_skipped_and_strict_refuses_it(
    scenes: ScenesPaths, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for file in scenes.train_images.iterdir():
        (images / file.name).write_bytes(file.read_bytes())
    broken = sorted(images.iterdir())[0]
    broken.write_bytes(b"no image")
    name = f"coco://{scenes.train_json}?images={images}"
    train, _ = load(scenes, train=(name,))
    assert len(train) == 11
    assert [row["file_name"] for row in DatasetCatalog.get(name)].count(str(broken)) == 0
    assert "1 of 12 images skipped" in train.skipped[-1]
    with pytest.raises(InputError, match=broken.name):
        load(scenes, train=(name,), strict=True)


def test_detectron2s_mapper_takes_a_run_length_mask_of_ours(tmp_path: Path) -> None:
    from detectron2.data import DatasetMapper

    file = tmp_path / "one.png"
    Image.fromarray(np.zeros((4, 6, 3), dtype=np.uint8)).save(file)
    one = Annotation((0.0, 0.0, 6.0, 4.0), 1, segmentation=RLE)
    dataset = replace(DATASET, records=(Record(1, str(file), 4, 6, (one,)),))
    register("rle", dataset)
    mapper = DatasetMapper(
        True,
        augmentations=[],
        image_format="RGB",
        use_instance_mask=True,
        instance_mask_format="bitmask",
    )
    found = mapper(DatasetCatalog.get("rle")[0])["instances"]
    assert found.gt_classes.tolist() == [1]
    assert found.gt_masks.tensor[0].nonzero().tolist() == [
        [y, x] for y in (1, 2) for x in (2, 3, 4)
    ]
