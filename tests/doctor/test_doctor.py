"""The doctor names each fault with its cure, and the engine that a run would take."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from moco_det import zoo
from moco_det.doctor import FAULT, NOTE, OK, Finding, engines, examine, hardware, packages, storage
from moco_det.foundation.strict_yaml import load_yaml
from moco_det_tools.doctor import main
from moco_det_tools.entry import run
from tests.data.builders import write_voc

Usage = namedtuple("Usage", "total used free")


def levels(findings: object) -> list[str]:
    return [finding.level for finding in findings]  # type: ignore[attr-defined]


def test_every_fault_comes_with_a_cure_in_the_next_line() -> None:
    assert Finding(FAULT, "it fails", "do this").lines() == [
        "FAULT  it fails",
        "       cure: do this",
    ]
    assert Finding(OK, "it runs").lines() == ["ok     it runs"]


def test_this_environment_has_no_fault_in_its_packages() -> None:
    found = [*packages.check_python(), *packages.check_torch(), *packages.check_required()]
    assert {f.level for f in found} <= {OK, NOTE} and len(found) == 3
    assert "NMS and RoIAlign run" in found[1].what


def test_a_package_that_does_not_load_is_named_and_the_others_are_still_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    fault, whole = packages.check_required()
    assert fault.level == FAULT and fault.what.startswith("scipy cannot be imported") and fault.cure
    assert "numpy" in whole.what and "scipy" not in whole.what


def test_torchvision_of_another_build_is_told_by_its_operators() -> None:
    def fail() -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    (finding,) = packages.check_torch(fail)
    assert finding.level == FAULT and "nms does not exist" in finding.what
    assert "and more" not in finding.what and "torchvision" in finding.cure


@pytest.mark.parametrize(
    ("cuda", "driver", "level", "words"),
    [
        (None, True, FAULT, "without CUDA on a machine with a GPU"),
        (None, False, NOTE, "MODEL.DEVICE cpu"),
        ("13.0", True, FAULT, "sees no GPU"),
        ("13.0", False, NOTE, "MODEL.DEVICE cpu"),
    ],
)
def test_why_there_is_no_gpu(cuda: str | None, driver: bool, level: str, words: str) -> None:
    finding = hardware.no_gpu(cuda, driver=driver)
    assert finding.level == level and words in finding.what
    assert bool(finding.cure) == (level == FAULT)


@pytest.mark.parametrize(
    ("message", "cure"),
    [
        ("No module named 'pkg_resources'", "setuptools<81"),
        ("module 'PIL.Image' has no attribute 'LINEAR'", "pillow<10"),
        ("module 'numpy' has no attribute 'bool'", "numpy<1.24"),
        ("_C.so: undefined symbol: _ZN3c10", "compiled for another torch"),
        ("No module named 'omegaconf'", "moco-det[detectron2]"),
        ("something new", "--engine standalone"),
    ],
)
def test_an_import_of_detectron2_that_fails_has_a_cure(message: str, cure: str) -> None:
    assert cure in engines.cure_of(message, "/somewhere/detectron2/__init__.py")


def test_a_detectron2_that_cannot_be_imported_is_a_fault_and_auto_takes_standalone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n.startswith("moco_det.plugin")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)  # so that the broken one is forgotten
    del sys.modules["detectron2"]
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text(
        "raise AttributeError(\"module 'PIL.Image' has no attribute 'LINEAR'\")"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = engines.check_detectron2()
    assert finding.level == FAULT and "LINEAR" in finding.what and "pillow<10" in finding.cure
    (last,) = engines.check_engine()
    assert last.what.startswith("--engine auto takes standalone: detectron2 cannot be imported")


def test_where_detectron2_is_absent_that_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "detectron2", None)
    (finding,) = engines.check_detectron2()
    assert finding.level == NOTE
    (last,) = engines.check_engine()
    assert last.what == "--engine auto takes standalone: detectron2 is not installed"


@pytest.mark.detectron2
def test_a_working_detectron2_is_told_with_its_age_and_the_pkg_resources_trap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("detectron2")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pkg_resources" else real(name)
    )
    first, *others = engines.check_detectron2()
    assert first.level == OK and "release 0.6 of 2021" in first.what
    assert any("setuptools<81" in other.what for other in others)
    (last,) = engines.check_engine()
    assert last.what.startswith("--engine auto takes detectron2")


def test_data_sets_are_found_with_counts_and_a_hole_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = (2, 3, 12, 13)
    write_voc(tmp_path / "VOC2007", {"a": [("cat", *box)], "b": [("dog", *box)]}, "train")
    write_voc(tmp_path / "VOC2007", {"c": [("dog", *box)]}, "val")
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    (coco / "val2017").mkdir()
    images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)]
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps({"images": images}))
    for i in range(2):
        (coco / "val2017" / f"{i}.jpg").touch()
    (tmp_path / "VOC2007" / "JPEGImages" / "c.jpg").unlink()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    found = {f.what.split(":")[0]: f for f in storage.check_datasets()}
    assert found["voc_2007_train"] == Finding(OK, "voc_2007_train: 2 images")
    assert found["voc_2007_val"].level == found["coco_2017_val"].level == FAULT
    assert "1 of 1 images lack" in found["voc_2007_val"].what
    assert "lists 3 images" in found["coco_2017_val"].what and "2" in found["coco_2017_val"].what
    (absent,) = [f for f in found.values() if f.level == NOTE]
    assert "coco_2017_train" in absent.what and "voc_2007_train," not in absent.what


def test_data_of_the_tasks_for_detectron2_alone_is_found_too(tmp_path: Path) -> None:
    city = tmp_path / "cityscapes"
    for split, names in {"train": ("a", "b"), "val": ("c",)}.items():
        for name in names:
            for file in (
                city / "leftImg8bit" / split / "ulm" / f"{name}_leftImg8bit.png",
                city / "gtFine" / split / "ulm" / f"{name}_gtFine_polygons.json",
            ):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()
    (city / "gtFine" / "train" / "ulm" / "b_gtFine_polygons.json").unlink()
    for name in ("lvis/lvis_v0.5_val.json", "coco/annotations/person_keypoints_val2017.json"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text('{"images": [{"file_name": "1"}, {"file_name": "2"}]}')
    for name in ("train2017/1.jpg", "val2017/2.jpg"):  # LVIS draws on both folders of COCO
        (tmp_path / "coco" / name).parent.mkdir()
        (tmp_path / "coco" / name).touch()
    found = {f.what.split(":")[0]: f for f in storage.check_datasets(tmp_path)}
    assert found["lvis_v0.5_val"] == Finding(OK, "lvis_v0.5_val: 2 images")
    keypoints = found["keypoints_coco_2017_val"]
    assert keypoints.level == FAULT and "lists 2 images" in keypoints.what
    train, val = (found[f"cityscapes_fine_instance_seg_{split}"] for split in ("train", "val"))
    assert train.level == FAULT and "1 of 2 images lack" in train.what and "b first" in train.what
    assert val.level == FAULT and "its maker counts 500" in val.what


def test_every_data_set_of_the_configs_is_looked_for() -> None:
    looked_for = {*storage.LISTED, *storage.BUILTIN_VOC, *storage.CITYSCAPES}
    named = set()
    for name in (name for name in zoo.names() if "/" not in name):
        data = load_yaml(zoo.get_config_file(name))["DATASETS"]
        named |= {*data["TRAIN"], *data["TEST"]}
    assert len(named) == 11 and named <= looked_for


def test_a_split_shorter_than_its_maker_counts_is_a_fault() -> None:
    assert storage.judge("coco_2017_val", 5000, "", "").level == OK
    assert "its maker counts 5,000" in storage.judge("coco_2017_val", 4999, "", "").what
    assert storage.judge("coco_2014_val", 7, "", "").level == OK


def test_a_missing_folder_of_data_sets_says_how_else_data_is_named(tmp_path: Path) -> None:
    (finding,) = storage.check_datasets(tmp_path / "gone")
    assert finding.level == NOTE and "voc://" in finding.what


def test_text_is_counted_in_a_file_and_an_empty_file_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'xx"file_name"yyy"file_name""file_name"' * 3)
    (tmp_path / "empty.json").touch()
    counts = [
        storage.count_text(tmp_path / f"{one}.json", b'"file_name"') for one in ("a", "empty")
    ]
    assert counts == [9, 0]


def test_a_full_disk_and_a_small_shared_memory_are_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64e6, 0, 1e9))
    disk, shared = storage.check_disk(tmp_path, tmp_path)
    assert disk.level == shared.level == FAULT
    assert "OUTPUT_DIR" in disk.cure and "--shm-size" in shared.cure


def test_the_tool_prints_every_finding_and_the_exit_code_counts_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")  # put back after the test
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64e9, 0, 64e9))
    assert run(lambda: main(["--datasets", str(tmp_path)])) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path) in printed and printed.endswith("no faults\n")
    assert "--engine auto takes" in printed.splitlines()[-3]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(64e9, 0, 1e9))
    assert run(lambda: main(["--datasets", str(tmp_path)])) == 1
    assert "1 fault(s)" in capsys.readouterr().out


def test_findings_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Python" in next(examine()).what


@pytest.mark.parametrize(
    ("load", "threads", "notes"), [(8.2, None, 1), (8.2, "1", 0), (2.9, None, 0)]
)
def test_a_busy_machine_is_named_where_torch_takes_all_its_cores(
    load: float, threads: str | None, notes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    found = list(hardware.check_load())
    assert levels(found) == [NOTE] * notes
    assert all("2 cores busy (load 8.2)" in f.what and "OMP_NUM_THREADS=1" in f.what for f in found)
