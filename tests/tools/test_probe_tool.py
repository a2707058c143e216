"""tools/probe.py as a user meets it: rows, the report of them, one line for bad input."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
import yaml

from moco_det.report import make_report
from moco_det.results import Row, read_rows
from moco_det_tools.entry import run
from moco_det_tools.probe import main
from pretrain import encoders
from pretrain.encoders import Encoder
from tests.pretrain.small_trunk import SmallTrunk


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(encoders.ARCHITECTURES, "small", SmallTrunk)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two colours of noise: twelve images of each to learn from, four to test on."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for channel, name in ((0, "blue"), (2, "red")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(0, 90, (36, 40, 3), dtype=np.uint8)
                image[..., channel] += 150
                cv2.imwrite(str(folder / f"{i}.png"), image)
    return str(root / "train"), str(root / "test")


def write_checkpoint(path: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    encoder = Encoder("small", head="fc", dim=8)
    content = {
        "format": "moco-det/1",
        "method": "moco",
        "arch": "small",
        "encoder": encoder.trunk.state_dict(),
        "head": encoder.head.state_dict(),
        "state": {"iteration": 40},
        "config": {"SEED": 5, "AUGMENT": {"SIZE": 32}},
        **changes,
    }
    torch.save(content, path)
    return path


def probe(sets: tuple[str, str], command: str, *arguments: str) -> list[Row]:
    """Run the tool as `moco-det probe` does; all rows of results.jsonl."""
    assert (
        main([command, *arguments, "--train", sets[0], "--test", sets[1], "--device", "cpu"]) == 0
    )
    return list(read_rows(["results.jsonl"]).rows)


def test_neighbours_of_several_checkpoints_are_rows_and_a_curve(
    sets: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_checkpoint(tmp_path / "a.pth")
    second = write_checkpoint(tmp_path / "b.pth", state={"iteration": 80})
    rows = probe(sets, "knn", str(first), str(second), "random", "--k", "5", "--name", "mine")
    assert [(row.arm, row.data["iterations"], row.seed) for row in rows] == [
        ("mine", 40, 5),
        ("mine", 80, 5),
        ("random", 0, 0),
    ]
    data = rows[0].data
    assert data["command"].startswith(f"moco-det probe knn {first} {second} random --")
    assert data["protocol"] == "knn" and data["precision"] == "float32"
    assert yaml.safe_load(data["config"]) == {
        "arch": "small",
        "size": 32,
        "features": "pooled",
        "k": 5,
        "temperature": 0.07,
    }
    assert len(data["init"]["sha256"]) == 64 and data["init"]["source"]["method"] == "moco"
    assert data["dataset"]["train_uri"] == sets[0] and data["dataset"]["train"].endswith("/train")
    assert data["dataset"]["train_images"] == 24 and data["dataset"]["classes"] == ["blue", "red"]
    assert rows[0].metric("probe", "top1") == 100.0 and rows[0].metric("probe", "top5") is None
    assert "knn5_mine_40_32px_seed5: top1 100.00  mean_class 100.00" in capsys.readouterr().out
    assert "svg" in make_report(["results.jsonl"], "out")["report.html"].read_text("utf-8")


def test_each_protocol_makes_a_row_of_its_own(sets: tuple[str, str], tmp_path: Path) -> None:
    checkpoint = str(write_checkpoint(tmp_path / "a.pth"))
    sgd = ("--epochs", "2", "--batch", "8", "--workers", "0", "--cache-mb", "64")
    probe(sets, "linear", checkpoint, *sgd, "--lr", "0.5")
    probe(sets, "linear-lbfgs", checkpoint, "--l2", "0.1", "0.01", "--seed", "3")
    rows = probe(sets, "finetune", "random", "--arch", "small", "--size", "32", *sgd)
    assert [row.data["protocol"] for row in rows] == ["linear", "linear_lbfgs", "finetune"]
    assert [row.arm for row in rows] == ["moco", "moco", "random"]
    linear, lbfgs, tuned = (yaml.safe_load(row.data["config"]) for row in rows)
    assert (linear["lr"], linear["head_lr"], linear["weight_decay"]) == (0.0, 0.5, 0.0)
    assert linear["milestones"] == [1]  # epochs 60 and 80 of 100 are 1 and 2 of 2
    assert lbfgs["l2"] == [0.1, 0.01] and rows[1].seed == 3
    assert rows[1].data["metrics"]["probe"]["l2"] in (0.1, 0.01)
    assert (tuned["lr"], tuned["head_lr"]) == (0.03, 0.03)
    assert (tmp_path / "runs/probe/finetune_random_0_32px_seed0/probe.pth").is_file()
    text = make_report(["results.jsonl"], "out")["report.md"].read_text("utf-8")
    assert "3 probes in 3 settings" in text and "a protocol of its own" in text


def test_a_finished_probe_is_not_trained_again(sets: tuple[str, str], tmp_path: Path) -> None:
    arguments = ["random", "--arch", "small", "--size", "32", "--epochs", "1", "--batch", "8",
                 "--workers", "0", "--lr", "0.1"]  # fmt: skip
    first = probe(sets, "linear", *arguments)[0]
    before = (tmp_path / "runs/probe/linear_random_0_32px_seed0/probe.pth").read_bytes()
    second = probe(sets, "linear", *arguments, "--resume")[1]
    assert first.data["metrics"] == second.data["metrics"]
    assert (tmp_path / "runs/probe/linear_random_0_32px_seed0/probe.pth").read_bytes() == before


@pytest.mark.slow
def test_a_torchvision_file_is_probed(sets: tuple[str, str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet18-x.pth")
    (row,) = probe(sets, "knn", "resnet18-x.pth", "--size", "32", "--k", "3")
    assert row.arm == "resnet18-x" and row.data["iterations"] is None
    assert row.data["init"]["source"]["format"] == "torchvision"
    assert row.data["init"]["source"]["arch"] == "resnet18"


def bad(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that bad input ends with; nothing has been written."""
    monkeypatch.setattr(sys, "argv", ["probe", *argv])
    assert run(main) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert not Path("results.jsonl").exists()
    return error


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("knn", "gone.pth"), "no checkpoint gone.pth"),
        (("knn", "random"), "random weights need an architecture"),
        (("knn", "random", "--arch", "vit"), "no architecture 'vit'"),
        (("knn", "a.pth", "--k", "0"), "--k is 0: it must be at least 1"),
        (("knn", "a.pth", "--temperature", "0"), "--temperature is 0.0: it must be at least 1e-06"),
        (("knn", "a.pth", "--size", "8"), "--size is 8: it must be from 32 to 8192"),
        (("knn", "a.pth", "b.pth"), "sizes 32, 64: give one by --size"),
        (("knn", "sup.pth", "--features", "head"), "have no trained embedding"),
        (("knn", "nan.pth"), "nan.pth: conv1.weight is not finite"),
        (("knn", "text.pth"), "text.pth"),
        (("knn", "a.pth", "--batch", "9" * 20), "9: it must be from 1 to 2.1"),
        (("linear-lbfgs", "a.pth", "--l2", "1e300"), "--l2 is 1e+300: it must be from 1e-12"),
        (("linear", "a.pth", "--epochs", "0"), "--epochs is 0: it must be at least 1"),
        (("linear", "a.pth", "--milestones", "200"), "--milestones 200 is never reached"),
        (("linear-lbfgs", "a.pth", "--l2", "-1"), "--l2 is -1.0: it must be at least 1e-12"),
        (("finetune", "a.pth", "--head-lr", "-1"), "--head-lr is -1.0: it must be at least 0"),
        (("knn", "a.pth", "--results", "."), "--results . is a folder"),
        (("knn", "a.pth", "--name", " "), "--name is empty"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    sets: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    write_checkpoint(tmp_path / "a.pth")
    write_checkpoint(tmp_path / "b.pth", config={"SEED": 5, "AUGMENT": {"SIZE": 64}})
    write_checkpoint(tmp_path / "sup.pth", method="supervised")
    damaged = Encoder("small", head="fc", dim=8).trunk.state_dict()
    damaged["conv1.weight"][0] = float("nan")
    write_checkpoint(tmp_path / "nan.pth", encoder=damaged)
    (tmp_path / "text.pth").write_text("no checkpoint")
    argv = (*arguments, "--train", sets[0], "--test", sets[1])
    assert message in bad(monkeypatch, capsys, *argv)


def test_sets_that_do_not_belong_together_are_named(
    sets: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(Path(sets[1]) / "red", tmp_path / "other" / "red")
    shutil.copytree(Path(sets[1]) / "blue", tmp_path / "other" / "green")
    start = ("knn", "random", "--arch", "small")
    error = bad(monkeypatch, capsys, *start, "--train", sets[0], "--test", "other")
    assert "blue only in" in error and "green only in other" in error
    error = bad(monkeypatch, capsys, *start, "--train", "gone", "--test", sets[1])
    assert "--train gone does not exist" in error


def test_few_training_images_are_said(
    sets: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = probe(sets, "knn", "random", "--arch", "small", "--size", "32")
    assert yaml.safe_load(row.data["config"])["k"] == 24
    assert row.data["warnings"] == ["k is 200 and there are 24 training images: all of them vote"]
    assert "all of them vote" in capsys.readouterr().out
