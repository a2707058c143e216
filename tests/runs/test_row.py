"""What a run says of itself, and the checks that both engines make before the first batch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from moco_det.data import DetectionDataset, Record
from moco_det.foundation.errors import InputError
from moco_det.runs.row import (
    check_classes_of_config,
    cpu_name,
    describe_data,
    describe_engine,
    describe_hardware,
    describe_init,
    make_row,
    now,
    overlap_warnings,
    sha256_of,
    summary,
    version_of,
)
from moco_det.weights import Backbone

INPUT = {
    "format": "RGB",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "stride_in_1x1": False,
}


def backbone(**changes: Any) -> Backbone:
    given: dict[str, Any] = {
        "path": Path("weights/moco.pkl"),
        "architecture": "resnet18",
        "model": {},
        "input": INPUT,
        "source": {"method": "moco_v2", "sha256": "1" * 64},
        "verified": {"max_abs_difference": 0.0},
        "sha256": "2" * 64,
    }
    return Backbone(**(given | changes))


def test_random_weights_are_called_random() -> None:
    init = describe_init(None, "", None, None)
    assert init["name"] == "random"
    assert init["weights"] is init["sha256"] is init["source"] is init["verified"] is None
    assert describe_init("scratch", "", None, None)["name"] == "scratch"


def test_an_arm_is_called_by_its_name_else_by_its_method_else_by_its_file() -> None:
    weights = "some/where/best.pkl"
    assert describe_init("mine", weights, backbone(), None)["name"] == "mine"
    init = describe_init(None, weights, backbone(), None)
    assert init["name"] == "moco_v2" and init["weights"] == "best.pkl"
    assert init["sha256"] == "2" * 64 and init["verified"] == {"max_abs_difference": 0.0}
    foreign = describe_init(None, weights, backbone(source=None, verified=None), None)
    assert foreign["name"] == "best" and foreign["source"] is None
    whole = describe_init(None, "model_final.pth", None, "3" * 64)
    assert whole["name"] == "model_final" and whole["sha256"] == "3" * 64


def dataset(*classes: str) -> DetectionDataset:
    return DetectionDataset("set", "voc://set", (), classes, tuple(range(len(classes))))


def test_the_number_of_classes_must_be_the_datas() -> None:
    check_classes_of_config(2, dataset("cat", "dog"))
    with pytest.raises(InputError, match=r"NUM_CLASSES is 80, but set has 2 .*cat, dog.* to 2"):
        check_classes_of_config(80, dataset("cat", "dog"))
    with pytest.raises(InputError, match=r"c7, \.\.\.\)"):
        check_classes_of_config(1, dataset(*(f"c{i}" for i in range(12))))


def test_the_description_of_data_engine_and_machine() -> None:
    described = describe_data(dataset("cat"), dataset("cat"))
    assert described["classes"] == ["cat"] and described["train_images"] == 0
    assert described["train_fingerprint"] == dataset("cat").fingerprint
    engine = describe_engine("standalone", "1.2")
    assert (engine["name"], engine["version"]) == ("standalone", "1.2")
    assert engine["torch"] == version_of("torch") != "absent"
    assert version_of("no-such-package-anywhere") == "absent"
    assert describe_hardware("cpu")["cores"] >= 1 and cpu_name()
    assert now().endswith("+00:00")


def row(metrics: dict[str, Any] | None) -> dict[str, Any]:
    return make_row(
        run="r",
        status="finished" if metrics else "failed",
        with_masks=False,
        dataset={},
        config_name="c",
        config="",
        init={},
        engine={},
        precision="float32",
        seed=0,
        iterations=1,
        batch=2,
        wall_seconds=1.23456,
        hardware={},
        metrics=metrics,
        output_dir=".",
        command="",
        started=now(),
        warnings=["w"],
    )


def test_a_row_without_metrics_has_none() -> None:
    done, failed = row({"bbox": {"AP": 1.0}}), row(None)
    assert done["metrics"] == {"bbox": {"AP": 1.0}} and "metrics" not in failed
    assert done["task"] == "box" and done["wall_seconds"] == 1.235 and done["schema"] == 2


def test_the_summary_shows_numbers_and_a_dash_where_there_is_none() -> None:
    metrics = {"bbox": {"AP": 12.25, "APl": None, "per_class": {"cat": 1.0}, "metric": "area"}}
    assert summary(metrics) == ["bbox: AP 12.25  APl -"]


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()


def test_images_that_are_trained_and_tested_on_are_named() -> None:
    def images(*names: str) -> DetectionDataset:
        return DetectionDataset(
            "set", "voc://set", tuple(Record(n, f"/{n}.jpg", 4, 4) for n in names), ("a",), (1,)
        )

    assert overlap_warnings(images("a", "b"), images("c")) == []
    assert overlap_warnings(images("a", "b"), images("b", "c")) == [
        "1 of 2 test images are training images too"
    ]
