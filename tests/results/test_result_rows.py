"""results.jsonl: nothing is lost, nothing torn is believed."""

from __future__ import annotations

import copy
import json
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.results import append_row, read_rows, validate_row


def row(run: str = "moco_seed0", **changes: Any) -> dict[str, Any]:
    base = {
        "schema": 2,
        "run": run,
        "status": "finished",
        "task": "box",
        "dataset": {
            "train": "toy_train",
            "test": "toy_test",
            "train_fingerprint": "a",
            "test_fingerprint": "b",
            "train_images": 2,
            "test_images": 1,
            "classes": ["cat"],
        },
        "config_name": "toy",
        "config": "SEED: 0\n",
        "init": {
            "name": "moco",
            "weights": "m.pkl",
            "sha256": "c" * 64,
            "source": None,
            "verified": None,
        },
        "engine": {"name": "standalone", "version": "1", "torch": "2.6", "torchvision": "0.21"},
        "precision": "float32",
        "seed": 0,
        "iterations": 10,
        "batch": 2,
        "wall_seconds": 1.5,
        "hardware": {"device": "cpu", "cores": 2},
        "metrics": {"bbox": {"AP": 10.0, "AP50": None, "AP75": 5, "per_class": {"cat": None}}},
        "output_dir": "runs/moco_seed0",
        "command": "tools/train_net.py",
        "started": "2025-01-01T00:00:00Z",
        "warnings": [],
    }
    return {**base, **changes}


def without(key: str) -> dict[str, Any]:
    changed = copy.deepcopy(row())
    *above, last = key.split(".")
    holder = changed
    for part in above:
        holder = holder[part]
    del holder[last]
    return changed


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.jsonl"
    written = row(run="Straße – 模型 <b>")
    append_row(path, written)
    read = read_rows([path])
    assert [r.data for r in read.rows] == [written]
    assert read.problems == ()
    assert read.rows[0].run_dir == tmp_path / "new" / "runs/moco_seed0"
    assert read.rows[0].metric("bbox", "AP75") == 5.0
    assert read.rows[0].metric("bbox", "AP50") is None
    assert read.rows[0].metric("segm", "AP") is None


COST = {
    "parameters": 41_300_000,
    "trainable_parameters": 0,
    "backbone_flops": None,
    "image": [800, 1088],
    "images_per_second": None,
}


def test_a_row_may_say_what_its_detector_costs() -> None:
    validate_row(row(cost=COST))
    validate_row(row(cost={**COST, "backbone_flops": 120_198_758_400, "images_per_second": 31.2}))
    for key, bad in (
        ("parameters", 0),
        ("trainable_parameters", "all"),
        ("backbone_flops", -1),
        ("image", [800]),
        ("images_per_second", float("nan")),
    ):
        with pytest.raises(InputError, match=f"'cost.{key}' is"):
            validate_row(row(cost={**COST, key: bad}))
    with pytest.raises(InputError, match=r"the row lacks 'cost\.parameters'"):
        validate_row(row(cost={}))


@pytest.mark.parametrize("folder", ["../other", "/etc", "runs/../../other", "link"])
def test_a_row_that_leads_out_of_its_folder_is_not_followed(tmp_path: Path, folder: str) -> None:
    (tmp_path / "results" / "runs").mkdir(parents=True)
    (tmp_path / "results" / "link").symlink_to("/dev")
    path = tmp_path / "results" / "results.jsonl"
    append_row(path, row(output_dir=folder))
    with pytest.raises(InputError, match="nothing in it is read"):
        read_rows([path]).rows[0].file("zero")


def test_a_link_that_leads_to_itself_is_a_file_that_does_not_open(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "predictions.json").symlink_to("predictions.json")
    path = tmp_path / "results.jsonl"
    append_row(path, row(output_dir="runs"))
    with pytest.raises(OSError, match="symbolic links"):
        read_rows([path]).rows[0].file("predictions.json").read_text()


def test_text_that_is_no_unicode_costs_the_reader_one_line_and_the_writer_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, row(run="caf\udce9"))
    with path.open("a") as file:
        file.write(json.dumps(row(run="x\ud800")) + "\n")
        file.write(json.dumps(row(seed=10**400)) + "\n")
        file.write(json.dumps(row(run="\U0001f600")) + "\n")
    read = read_rows([path])
    assert [one.data["run"] for one in read.rows] == ["caf?", "\U0001f600"]
    assert [problem.line for problem in read.problems] == [2, 3]


def test_a_folder_stands_for_its_results_file_and_is_read_once(tmp_path: Path) -> None:
    append_row(tmp_path / "results.jsonl", row())
    assert len(read_rows([tmp_path, tmp_path / "results.jsonl"]).rows) == 1


def test_a_row_after_a_torn_line_survives(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, row("first"))
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row("torn"))[:50])
    append_row(path, row("third"))
    read = read_rows([path])
    assert [r.data["run"] for r in read.rows] == ["first", "third"]
    assert [problem.line for problem in read.problems] == [2]


def test_a_byte_order_mark_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f"{json.dumps(row())}\n", encoding="utf-8-sig")
    assert [one.data["run"] for one in read_rows([path]).rows] == ["moco_seed0"]


def test_a_torn_last_line_is_reported_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, row("first"))
    with path.open("a", encoding="utf-8") as file:
        file.write('{"schema": 2, "run": "to')
    read = read_rows([path])
    assert len(read.rows) == 1
    assert "line 2: torn" in str(read.problems[0])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"schema": 3}', "schema 3 is unknown"),
        ('{"schema": true}', "schema True is unknown"),
        ("{}", "no 'schema'"),
        ("[1, 2]", "not a json object"),
        ("hello", "not json"),
        (json.dumps(row()).replace("10.0", "NaN"), "NaN"),
        ("\x00\x01", "not json"),
        ("[" * 100_000, "not json"),
    ],
)
def test_a_line_that_is_no_row_is_a_problem_and_not_a_crash(
    tmp_path: Path, line: str, said: str
) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(line + "\n" + json.dumps(row()) + "\n", encoding="utf-8")
    read = read_rows([path])
    assert len(read.rows) == 1
    assert said in read.problems[0].reason


def test_a_missing_file_is_an_input_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gone.jsonl"):
        read_rows([tmp_path / "gone.jsonl"])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (without("engine.version"), "lacks 'engine.version'"),
        (without("metrics"), "'metrics'"),
        (row(seed="0"), "'seed' is '0'"),
        (row(seed=True), "'seed' is True"),
        (row(status="done"), "'status' is 'done'"),
        (row(precision="fp16"), "'precision' is 'fp16'"),
        (row(task="box+mask"), "lacks 'metrics.segm'"),
        (row(warnings=[1]), "'warnings' is [1]"),
        (row(metrics={"bbox": {"AP": 0.5}}), "lacks 'metrics.bbox.AP50'"),
        (
            row(metrics={"bbox": {"AP": 1, "AP50": 1, "AP75": 1, "per_class": {"cat": 101}}}),
            "{'cat'",
        ),
        (row(metrics={"bbox": {"AP": 101, "AP50": 1, "AP75": 1}}), "percent"),
        (row(metrics={"bbox": {"AP": -1, "AP50": 1, "AP75": 1}}), "percent"),
        (row(metrics={"bbox": {"AP": float("nan"), "AP50": 1, "AP75": 1}}), "percent"),
        (row(metrics={"bbox": {"AP": 10**400, "AP50": 1, "AP75": 1}}), "percent"),
        (row(wall_seconds=float("inf")), "'wall_seconds' is inf"),
        (row(wall_seconds=10**400), "'wall_seconds'"),
        (row(wall_seconds=-1.0), "'wall_seconds' is -1.0"),
        (row(iterations=0), "'iterations' is 0"),
        (row(batch=-4), "'batch' is -4"),
        (row(output_dir="a\0b"), "'output_dir'"),
        (row(init={**row()["init"], "input": "RGB"}), "'init.input' is 'RGB'"),
        (row(extra={1, 2}), "json"),
    ],
)
def test_a_bad_row_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, bad: dict[str, Any], said: str
) -> None:
    path = tmp_path / "results.jsonl"
    with pytest.raises(InputError) as caught:
        append_row(path, bad)
    assert said in str(caught.value)
    assert not path.exists()


def test_a_failed_row_needs_no_metrics() -> None:
    validate_row(row(status="failed", metrics=None, error="diverged"))
    validate_row({**without("metrics"), "status": "failed", "error": "diverged"})


def test_a_failed_row_says_why_and_may_not_know_its_data() -> None:
    failed = row(status="failed", metrics=None, precision=None, iterations=None, error="no images")
    failed["dataset"] |= {"train_fingerprint": None, "classes": None, "train_images": None}
    validate_row(failed)
    with pytest.raises(InputError, match="'error' is None, wanted why the run failed"):
        validate_row({**failed, "error": None})
    with pytest.raises(InputError, match="'dataset.train_fingerprint' is None"):
        validate_row({**failed, "status": "finished"})
    with pytest.raises(InputError, match="'seed' is None"):
        validate_row({**failed, "seed": None})


def test_rows_of_the_first_schema_stay_readable(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    old = [row(schema=1), row("failed", schema=1, status="failed", warnings=["broke"], metrics={})]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in old), encoding="utf-8")
    append_row(path, row("new"))
    read = read_rows([path])
    assert read.problems == ()
    assert [r.data["run"] for r in read.rows] == ["moco_seed0", "failed", "new"]
    assert read.rows[1].data["error"] == "broke" and read.rows[0].metric("bbox", "AP") == 10.0
    assert {r.data["schema"] for r in read.rows} == {2}
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[0])["schema"] == 1


def test_unknown_keys_of_a_known_schema_are_kept(tmp_path: Path) -> None:
    append_row(tmp_path / "results.jsonl", row(note="kept"))
    assert read_rows([tmp_path]).rows[0].data["note"] == "kept"


def test_a_target_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot make the folder"):
        append_row(tmp_path / "file" / "results.jsonl", row())


def _append_many(path: Path, name: str, count: int) -> None:
    for i in range(count):
        append_row(path, row(f"{name}_{i}", command="x" * 5000))


def test_processes_and_threads_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_append_many, args=(path, f"p{i}", 20)) for i in range(4)]
    for process in writers:
        process.start()
    threads = [threading.Thread(target=_append_many, args=(path, f"t{i}", 20)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in writers:
        process.join()
    read = read_rows([path])
    assert read.problems == ()
    names = {
        f"{kind}{i}_{j}" for kind, n in (("p", 4), ("t", 3)) for i in range(n) for j in range(20)
    }
    assert {r.data["run"] for r in read.rows} == names
    assert len(read.rows) == len(names)


def probe_row(**changes: Any) -> dict[str, Any]:
    """A row of tools/probe.py."""
    metrics = {"probe": {"top1": 41.5, "top5": None, "mean_class": 40, "l2": 0.01}}
    return row(**{"task": "probe", "protocol": "knn", "metrics": metrics, **changes})


@pytest.mark.parametrize("iterations", [0, 2660, None])
def test_a_probe_s_row_comes_back(tmp_path: Path, iterations: int | None) -> None:
    path = tmp_path / "results.jsonl"
    append_row(path, row())
    append_row(path, probe_row(iterations=iterations))
    detection, probe = read_rows([path]).rows
    assert not detection.probe and probe.probe
    assert probe.metric("probe", "top1") == 41.5 and probe.metric("probe", "top5") is None
    assert probe.metric("bbox", "AP") is None and detection.metric("probe", "top1") is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"protocol": "svm"}, "'protocol' is 'svm', wanted one of knn, linear, linear_lbfgs"),
        ({"protocol": None}, "'protocol' is None, wanted one of knn"),
        ({"iterations": "many"}, "'iterations' is 'many', wanted an integer or null"),
        ({"metrics": {"bbox": {}}}, "lacks 'metrics.probe'"),
        ({"metrics": {"probe": {"top1": 4.0}}}, "lacks 'metrics.probe.top5'"),
        (
            {"metrics": {"probe": {"top1": 101.0, "top5": None, "mean_class": 1.0}}},
            "'metrics.probe.top1' is 101.0, wanted percent",
        ),
    ],
)
def test_a_probe_s_row_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        validate_row(probe_row(**changes))
    assert message in str(caught.value)


def test_a_detection_row_must_say_its_iterations() -> None:
    with pytest.raises(InputError, match="'iterations' is None, wanted a number above 0"):
        validate_row(row(iterations=None))
