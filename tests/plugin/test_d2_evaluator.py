"""TEST.EVALUATOR detectron2: its readers, its tasks and its scores in our runs and rows."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moco_det.data import load_dataset
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.errors import InputError
from moco_det.results import read_rows

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402

from moco_det.plugin.catalog import load_catalog_data, read  # noqa: E402
from moco_det.plugin.evaluator import check_scorer, to_metrics  # noqa: E402

Tool = Callable[..., int]


@pytest.fixture(scope="module")
def persons(scenes: ScenesPaths, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The scenes with every object a person of 17 keypoints inside its box."""
    folder = tmp_path_factory.mktemp("persons")
    names = {}
    for split, source, images in (
        ("train", scenes.train_json, scenes.train_images),
        ("test", scenes.test_json, scenes.test_images),
    ):
        content = json.loads(source.read_text())
        content["categories"] = [{"id": 1, "name": "person", "keypoints": ["nose"] * 17}]
        for row in content["annotations"]:
            x, y, w, h = row["bbox"]
            points = [(x + w * (i + 1) / 19, y + h * (i % 5 + 1) / 7, 2) for i in range(17)]
            row |= {"category_id": 1, "keypoints": [v for p in points for v in p]}
            row["num_keypoints"] = 17
        (folder / f"{split}.json").write_text(json.dumps(content))
        names[split] = f"coco://{folder}/{split}.json?images={images}"
    return names


def test_keypoints_are_trained_and_scored_and_their_ap_is_in_the_row(
    persons: dict[str, str], train_net: Tool, tmp_path: Path
) -> None:
    code = train_net(
        *("--engine", "detectron2"),
        OUTPUT_DIR=str(tmp_path / "run"),
        DATASETS__TRAIN=repr((persons["train"],)),
        DATASETS__TEST=repr((persons["test"],)),
        TEST__EVALUATOR="detectron2",
        MODEL__KEYPOINT_ON="True",
        MODEL__MASK_ON="False",
        MODEL__ROI_HEADS__NUM_CLASSES="1",
        MODEL__ROI_KEYPOINT_HEAD__CONV_DIMS="(32,)",
        SOLVER__MAX_ITER="2",
    )
    assert code == 0
    rows = read_rows([tmp_path / "run"])
    assert rows.problems == ()
    (row,) = [row.data for row in rows.rows]
    assert {"bbox", "keypoints"} <= row["metrics"].keys()
    assert {"AP", "AP50", "AP75"} <= row["metrics"]["keypoints"].keys()
    assert row["dataset"]["classes"] == ["person"] and row["dataset"]["train_images"] == 12
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss_keypoint"] > 0 and "keypoints/AP" in lines[-1]
    predicted = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert predicted and len(predicted[0]["keypoints"]) == 51


def test_both_scorers_give_the_same_ap_of_one_model(
    scenes: ScenesPaths, train_net: Tool, tmp_path: Path
) -> None:
    common = {
        "DATASETS__TRAIN": repr((scenes.train,)),
        "DATASETS__TEST": repr((scenes.train,)),
        "SOLVER__BASE_LR": "0.02",
        "SOLVER__MAX_ITER": "30",
        "SOLVER__STEPS": "()",
        "SOLVER__CHECKPOINT_PERIOD": "100",
        "TEST__DETECTIONS_PER_IMAGE": "30",
        "TEST__PRECISE_BN__NUM_ITER": "4",
    }
    assert train_net("--engine", "detectron2", OUTPUT_DIR=str(tmp_path / "a"), **common) == 0
    again = {**common, "MODEL__WEIGHTS": str(tmp_path / "a" / "model_final.pth")}
    code = train_net(
        *("--engine", "detectron2", "--eval-only"),
        OUTPUT_DIR=str(tmp_path / "b"),
        TEST__EVALUATOR="detectron2",
        **again,
    )
    assert code == 0
    ours = [json.loads(x) for x in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()][-1]
    text = (tmp_path / "b" / "log.txt").read_text()
    (line,) = [x for x in text.splitlines() if "evaluation: bbox:" in x]
    assert ours["bbox/AP"] > 0
    assert f"bbox: AP {ours['bbox/AP']:.2f}  AP50 {ours['bbox/AP50']:.2f}" in line
    (line,) = [x for x in text.splitlines() if "evaluation: segm:" in x]
    assert f"segm: AP {ours['segm/AP']:.2f}  AP50 {ours['segm/AP50']:.2f}" in line


def test_what_was_not_measured_is_null_and_classes_are_apart() -> None:
    # LVIS says -100 where there are no such objects
    found = {"segm": {"AP": 12.5, "AP50": 30.0, "APr": -100.0, "AP-car": math.nan, "AP-bus": 3.0}}
    assert to_metrics(found) == {
        "bbox": {"AP": None, "AP50": None, "AP75": None},
        "segm": {
            "AP": 12.5,
            "AP50": 30.0,
            "AP75": None,
            "APr": None,
            "per_class": {"car": None, "bus": 3.0},
        },
    }


def test_data_of_detectron2s_catalog_is_described_as_our_own_reader_does(
    scenes: ScenesPaths,
) -> None:
    theirs, ours = read(scenes.train, keypoints=False), load_dataset(scenes.train)
    assert theirs.fingerprint == ours.fingerprint
    assert len(DatasetCatalog.get(scenes.train)) == len(ours)
    name = "described_scenes"
    rows = DatasetCatalog.get(scenes.train)
    DatasetCatalog.register(name, lambda: rows)
    MetadataCatalog.get(name).set(
        thing_classes=list(ours.classes),
        thing_dataset_id_to_contiguous_id={n: i for i, n in enumerate(ours.category_ids)},
    )
    try:
        described = read(name, keypoints=False)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert described.classes == ours.classes and described.category_ids == ours.category_ids
    for mine, other in zip(ours.records, described.records, strict=True):
        assert (mine.image_id, mine.height, mine.width) == (
            other.image_id,
            other.height,
            other.width,
        )
        for a, b in zip(mine.annotations, other.annotations, strict=True):
            assert a.category == b.category and a.bbox == pytest.approx(b.bbox)
            assert a.segmentation == b.segmentation


def load(**changes: Any) -> object:
    arguments: dict[str, Any] = {
        "train": ("coco_2017_train",),
        "test": ("coco_2017_val",),
        "num_classes": 80,
        "keypoints": False,
        "progress": False,
    }
    return load_catalog_data(**{**arguments, **changes})


def test_bad_data_is_one_line_that_names_the_way_out(
    scenes: ScenesPaths,
    persons: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError, match="coco_2017_train cannot be read.*DETECTRON2_DATASETS"):
        load()
    with pytest.raises(InputError, match="'coco_2018_train' is not in detectron2's catalog"):
        load(train=("coco_2018_train",))
    with pytest.raises(InputError, match="names 2 data sets"):
        load(test=("coco_2017_val", "coco_2014_val"))
    with pytest.raises(InputError, match="takes coco://, not voc"):
        load(train=(scenes.voc_train,))
    with pytest.raises(InputError, match="have different classes"):
        load(train=(scenes.train,), test=(persons["test"],))
    with pytest.raises(InputError, match="NUM_CLASSES is 80"):
        load(train=(scenes.train,), test=(scenes.test,))
    marked = tmp_path / "marked.json"
    marked.write_text(scenes.train_json.read_text(), encoding="utf-8-sig")
    with pytest.raises(InputError, match=r"detectron2 does not read .* BOM.*EVALUATOR moco_det"):
        load(train=(f"coco://{marked}?images={scenes.train_images}",))
    monkeypatch.setitem(sys.modules, "lvis", None)
    with pytest.raises(InputError, match=r"lvis_v0.5_train needs a package.*pip install lvis"):
        load(train=("lvis_v0.5_train",))


def test_a_kind_of_data_without_boxes_is_refused() -> None:
    with pytest.raises(InputError, match="of detectron2's kind cityscapes_sem_seg"):
        check_scorer("cityscapes_fine_sem_seg_val")
    check_scorer("keypoints_coco_2017_val")
    check_scorer("lvis_v0.5_val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DATASETS__TRAIN": "('lvis_v0.5_train',)"}, "set TEST.EVALUATOR detectron2"),
        ({"MODEL__KEYPOINT_ON": "True"}, "MODEL.KEYPOINT_ON is True"),
        ({"TEST__EVALUATOR": "mine"}, "TEST.EVALUATOR is 'mine'"),
        ({"TEST__EVALUATOR": "detectron2", "DATASETS__TEST": "('a', 'b')"}, "names 2 data sets"),
    ],
)
def test_what_the_scorers_cannot_do_is_said_before_anything_is_written(
    changes: dict[str, str],
    message: str,
    train_net: Tool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train_net("--engine", "detectron2", OUTPUT_DIR=str(tmp_path / "run"), **changes) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "run").exists()
