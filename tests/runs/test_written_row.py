"""A run has one row in a results file, however often it is resumed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from fvcore.common.config import CfgNode

from moco_det.data.scenes import ScenesPaths
from moco_det.results import Row, read_rows
from moco_det.runs.folder import written_row
from moco_det.settings.engine import RunOptions
from tests.standalone.tiny import on_scenes, run, scenes

RESUME = RunOptions("R18_FPN", resume=True)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> ScenesPaths:
    return scenes(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(painted: ScenesPaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "run"
    run(on_scenes(painted, output, {"SOLVER.MAX_ITER": "2"}), RunOptions("R18_FPN"))
    return output


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def config(painted: ScenesPaths, output: Path, **changes: str) -> CfgNode:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return on_scenes(painted, output, {"SOLVER.MAX_ITER": "2", **dotted})


def rows(file: Path) -> list[Row]:
    return list(read_rows([file]).rows)


def test_resuming_a_finished_run_trains_scores_and_writes_nothing(
    copy: Path, painted: ScenesPaths, caplog: pytest.LogCaptureFixture
) -> None:
    for left in ("model_0000001.pth", "model_final.pth"):
        (copy / left).write_bytes(b"is not read")
    before = {file: file.read_bytes() for file in copy.iterdir()}
    with caplog.at_level("INFO"):
        metrics = run(config(painted, copy), RESUME)
    assert metrics == rows(copy)[0].data["metrics"]
    assert {file: file.read_bytes() for file in copy.iterdir()} == before
    (line,) = caplog.messages
    assert line == f"{copy} is finished: its row is line 1 of {copy / 'results.jsonl'}"


def test_the_row_says_what_the_detector_costs(finished: Path) -> None:
    cost = rows(finished / "results.jsonl")[0].data["cost"]
    assert cost["image"] == [64, 96] and cost["backbone_flops"] > 1e8
    assert cost["trainable_parameters"] == cost["parameters"] > 1e7
    assert cost["images_per_second"] > 0
    (line,) = [x for x in (finished / "log.txt").read_text().splitlines() if "GFLOPs" in x]
    assert f"{cost['parameters']:,} parameters" in line and "for 64 x 96 pixels" in line


def test_what_enters_no_number_may_change(copy: Path, painted: ScenesPaths) -> None:
    run(config(painted, copy, SOLVER__CHECKPOINT_PERIOD="7", DATALOADER__NUM_WORKERS="1"), RESUME)
    assert len(rows(copy)) == 1


def test_every_results_file_gets_the_row_once_and_a_longer_run_is_another(
    copy: Path, painted: ScenesPaths, tmp_path: Path
) -> None:
    shared = tmp_path / "shared.jsonl"
    options = RunOptions("R18_FPN", resume=True, results=shared)
    for _ in range(2):
        run(config(painted, copy), options)
        assert [row.data["iterations"] for row in rows(shared)] == [2]
    assert rows(shared)[0].data["metrics"] == rows(copy)[0].data["metrics"]
    for _ in range(2):
        run(config(painted, copy, SOLVER__MAX_ITER="3"), options)
        assert [row.data["iterations"] for row in rows(shared)] == [2, 3]


def test_rows_of_other_runs_and_lines_that_are_none_are_passed_over(
    copy: Path, painted: ScenesPaths, tmp_path: Path
) -> None:
    cfg, file = config(painted, copy), copy / "results.jsonl"
    whole = file.read_text()
    (row,) = rows(file)
    file.write_text(
        whole.replace('"output_dir": "."', '"output_dir": "elsewhere"')
        + whole.replace('"name": "standalone"', '"name": "detectron2"')
        + whole.replace('"sha256": null', '"sha256": "of other weights"')
        + whole.replace("SEED: 3", "SEED: 4")
        + whole.replace("SEED: 3", "SEED: [")
        + whole[:100]
    )
    assert len(rows(file)) == 5 and len({str(r.data) for r in rows(file)}) == 5
    assert written_row(file, copy, cfg, "standalone") is None
    file.write_text(file.read_text() + "\n" + whole)
    found = written_row(file, copy, cfg, "standalone")
    assert found is not None and found.data == row.data and found.line == 7


def test_a_resumed_run_took_its_whole_time(copy: Path, painted: ScenesPaths) -> None:
    content = torch.load(copy / "model_final.pth", weights_only=True)
    torch.save({**content, "seconds": 5000.0}, copy / "model_final.pth")
    (copy / "results.jsonl").unlink()  # killed between its checkpoint and its row
    run(config(painted, copy), RESUME)
    assert 5000 < rows(copy)[0].data["wall_seconds"] < 6000
