"""A run that was killed and resumed ends where one that was never stopped ends, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from moco_det.foundation.errors import InputError
from pretrain import loop, train
from pretrain.config import load_config
from pretrain.data import list_images
from pretrain.data.shard_files import write_shards

REPO = Path(__file__).resolve().parents[2]
QUICK = REPO / "configs" / "pretrain" / "quick" / "moco_v2_r18.yaml"
EVERY = {
    "moco": [],
    "end_to_end": ["METHOD", "end_to_end"],
    "memory_bank": ["METHOD", "memory_bank", "MEMORY_BANK.K", "16"],
    "nce": ["METHOD", "inst_disc", "INST_DISC.K", "16", "INST_DISC.Z_MOMENTUM", "0.9"],
    "skip": ["METHOD", "inst_disc", "INST_DISC.K", "16", "BANK.SKIP_UNSEEN", "True"],
    "softmax": ["METHOD", "inst_disc", "INST_DISC.LOSS", "softmax", "INST_DISC.PROXIMAL", "1.0"],
    "parametric": ["METHOD", "inst_disc", "INST_DISC.LOSS", "parametric"],
    "supervised": ["METHOD", "supervised"],
}


def records(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timing = ("images_per_second", "data_wait")
    return [{k: v for k, v in row.items() if k not in timing} for row in rows]


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in leaves(tree[key])]
    return [tree]


def assert_same_run(whole: Path, parts: Path) -> None:
    expected, got = (torch.load(p / "checkpoint.pth", weights_only=True) for p in (whole, parts))
    for name in ("encoder", "head", "state"):
        for a, b in zip(leaves(expected[name]), leaves(got[name]), strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
    assert records(whole) == records(parts)


def stop_at(monkeypatch: pytest.MonkeyPatch, iteration: int) -> None:
    step = loop.Loop._step

    def stopping(self: loop.Loop, raw: Any) -> None:
        if self.iteration == iteration:
            raise KeyboardInterrupt
        step(self, raw)

    monkeypatch.setattr(loop.Loop, "_step", stopping)


def compare(
    tiny: list[str], pairs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run once whole; once stopped after step 3 with checkpoints at 2 and 4, and continued."""
    pairs = [*tiny, "LOG_EVERY", "3", "CHECKPOINT_EVERY", "2", *pairs]
    whole = load_config(QUICK, [*pairs, "OUTPUT_DIR", str(tmp_path / "whole")])
    parts = load_config(QUICK, [*pairs, "OUTPUT_DIR", str(tmp_path / "parts")])
    train.train(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train.train(parts)
    train.train(parts, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("method", EVERY)
def test_every_method_goes_on_exactly(
    method: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(tiny, EVERY[method], tmp_path, monkeypatch)


def test_neighbours_and_workers_do_not_disturb_it(
    tiny: list[str], tmp_path: Path, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 images in batches of 8: step 3 ends an epoch, where kNN is measured, step 5 is inside."""
    knn = ["KNN.TRAIN", str(class_folders), "KNN.EVERY", "0.67"]
    pairs = ["DATA.WORKERS", "2", "SOLVER.MAX_ITER", "5", "KNN.SIZE", "32", *knn]
    compare(tiny, pairs, tmp_path, monkeypatch)
    measured = [row["iteration"] for row in records(tmp_path / "parts") if "knn_accuracy" in row]
    assert measured == [0, 2, 4, 5]


def test_a_stream_of_shards_goes_on_exactly(
    tiny: list[str], tmp_path: Path, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_shards(
        list_images(str(class_folders)), tmp_path / "shards", name="s", shard_mb=1, seed=0
    )
    compare(tiny, ["DATA.PATH", path, "DATA.SHUFFLE_BUFFER", "6"], tmp_path, monkeypatch)


def test_corrupt_images_are_remembered_over_a_stop(
    tiny: list[str], tmp_path: Path, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for path in sorted(class_folders.rglob("*.jpg")):
        (tmp_path / "images" / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    broken = tmp_path / "images" / "cat000.jpg"
    broken.write_bytes(b"not an image")
    pairs = ["DATA.PATH", str(tmp_path / "images"), "DATA.CACHE_MB", "0", "SOLVER.MAX_ITER", "6"]
    compare(tiny, pairs, tmp_path, monkeypatch)
    content = torch.load(tmp_path / "parts" / "checkpoint.pth", weights_only=True)
    assert content["state"]["corrupt"] == {"names": [str(broken)], "seen": 48}


@pytest.mark.slow
def test_a_process_that_was_killed_goes_on_exactly(tiny: list[str], tmp_path: Path) -> None:
    pairs = [
        "LOG_EVERY",
        "3",
        "CHECKPOINT_EVERY",
        "5",
        "SOLVER.MAX_ITER",
        "25",
        "DATA.WORKERS",
        "2",
    ]

    def command(name: str) -> list[str]:
        output = ["OUTPUT_DIR", str(tmp_path / name)]
        workers = ["DATA.WORKERS", "2"]
        tool = [sys.executable, str(REPO / "tools" / "pretrain.py"), "--resume"]
        return [*tool, "--config-file", str(QUICK), *tiny, *pairs, *workers, *output]

    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    env["OMP_NUM_THREADS"] = "1"
    subprocess.run(command("whole"), env=env, check=True, capture_output=True)
    with subprocess.Popen(command("parts"), env=env, stderr=subprocess.DEVNULL) as running:
        for _ in range(1200):
            if (tmp_path / "parts" / "checkpoint_00000010.pth").exists():
                break
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGKILL)
    assert not (tmp_path / "parts" / "checkpoint.pth").exists()
    subprocess.run(command("parts"), env=env, check=True, capture_output=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_goes_on_in_the_precision_it_has(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [*tiny, "CHECKPOINT_EVERY", "1"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train.train(load_config(QUICK, [*pairs, "PRECISION", "bfloat16"]))
    with pytest.raises(InputError, match="PRECISION is float32 and .* was trained in bfloat16"):
        train.train(load_config(QUICK, pairs), resume=True)
    monkeypatch.setattr(train, "use_bfloat16", lambda precision, device: False)
    caplog.set_level("INFO")
    path = train.train(load_config(QUICK, [*pairs, "PRECISION", "auto"]), resume=True)
    assert "PRECISION auto goes on in bfloat16" in caplog.text
    assert torch.load(path, weights_only=True)["state"]["bfloat16"] is True


def test_other_images_are_refused(
    tiny: list[str], tmp_path: Path, class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [*tiny, "CHECKPOINT_EVERY", "1"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train.train(load_config(QUICK, pairs))
    other = load_config(QUICK, [*pairs, "DATA.PATH", str(class_folders / "cat")])
    with pytest.raises(InputError, match="trained with 24 images and DATA.PATH now has 12"):
        train.train(other, resume=True)


def test_a_run_begun_before_a_key_was_there_goes_on_with_its_default(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [*tiny, "CHECKPOINT_EVERY", "2"]
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train.train(load_config(QUICK, pairs))
    (path,) = (tmp_path / "run").glob("checkpoint_*.pth")
    content = torch.load(path, weights_only=True)
    del content["config"]["DATA"]["ON_DEVICE"]
    torch.save(content, path)
    with pytest.raises(InputError, match=r"DATA\.ON_DEVICE \(False then, True now\)"):
        train.train(load_config(QUICK, [*pairs, "DATA.ON_DEVICE", "True"]), resume=True)
    train.train(load_config(QUICK, pairs), resume=True)


def test_another_config_is_refused_but_for_what_does_not_teach(
    tiny: list[str], class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [*tiny, "CHECKPOINT_EVERY", "1"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train.train(load_config(QUICK, pairs))
    other = load_config(QUICK, [*pairs, "SOLVER.LR", "0.5"])
    with pytest.raises(InputError, match=r"another config: SOLVER.LR \(0.06 then, 0.5 now\)"):
        train.train(other, resume=True)
    knn = ["KNN.TRAIN", str(class_folders), "KNN.EVERY", "1"]
    path = train.train(load_config(QUICK, [*pairs, "KNN.SIZE", "32", *knn]), resume=True)
    assert [row["iteration"] for row in records(path.parent) if "knn_accuracy" in row] == [3, 4]


def test_the_watch_measures_random_weights_and_the_end_and_says_which_is_better(
    tiny: list[str], class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped before it was watched is held to the same random weights."""
    watched = ["KNN.TRAIN", str(class_folders), "KNN.SIZE", "32"]
    folder = train.train(load_config(QUICK, [*tiny, *watched])).parent
    first, last = (row for row in records(folder) if "knn_accuracy" in row)
    assert (first["iteration"], last["iteration"]) == (0, 4)
    assert first["knn_random"] == first["knn_accuracy"] == last["knn_random"]
    better = last["knn_accuracy"] - last["knn_random"] > last["knn_margin"]
    assert better != ("no better than its random weights" in last.get("warning", ""))
    stopped = [*tiny, "OUTPUT_DIR", str(folder.parent / "stopped"), "CHECKPOINT_EVERY", "1"]
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            train.train(load_config(QUICK, stopped))
    folder = train.train(load_config(QUICK, [*stopped, *watched]), resume=True).parent
    assert records(folder)[-1] == last
