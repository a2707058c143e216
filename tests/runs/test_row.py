"""What a run says of itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from moco_det.data import DetectionDataset
from moco_det.runs.row import (
    cpu_name,
    describe_data,
    describe_engine,
    describe_hardware,
    describe_init,
    now,
    sha256_of,
    version_of,
)
from moco_det.weights.backbone import Backbone

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
    init = describe_init(None, "", None)
    assert init["name"] == "random"
    assert init["weights"] is init["sha256"] is init["source"] is init["verified"] is None
    assert describe_init("scratch", "", None)["name"] == "scratch"


def test_an_arm_is_called_by_its_name_else_by_its_method_else_by_its_file(tmp_path: Path) -> None:
    weights = "some/where/best.pkl"
    assert describe_init("mine", weights, backbone())["name"] == "mine"
    init = describe_init(None, weights, backbone())
    assert init["name"] == "moco_v2" and init["weights"] == "best.pkl"
    assert init["sha256"] == "2" * 64 and init["verified"] == {"max_abs_difference": 0.0}
    foreign = describe_init(None, weights, backbone(source=None, verified=None))
    assert foreign["name"] == "best" and foreign["source"] is None
    whole = tmp_path / "model_final.pth"
    whole.write_bytes(b"abc")
    init = describe_init(None, str(whole), None)
    assert init["name"] == "model_final" and init["sha256"] == hashlib.sha256(b"abc").hexdigest()


def dataset(*classes: str) -> DetectionDataset:
    return DetectionDataset("set", "voc://set", (), classes, tuple(range(len(classes))))


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


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()
