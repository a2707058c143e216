from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import fast_avx512_bfloat16, pick_device, use_bfloat16
from pretrain import build, checkpoints, loop, train
from pretrain.config import load_config
from tests.pretrain.test_resume import QUICK, records, stop_at


def config(tiny: list[str], *pairs: object) -> Any:
    return load_config(QUICK, [*tiny, *map(str, pairs)])


def test_a_run_leaves_the_checkpoint_of_the_contract(tiny: list[str]) -> None:
    cfg = config(tiny, "ENCODER.ARCH", "resnet18")
    path = train.train(cfg)
    assert path == Path(cfg.OUTPUT_DIR) / "checkpoint.pth"
    content = torch.load(path, weights_only=True)
    assert (content["format"], content["method"]) == ("moco-det/1", "moco")
    assert content["arch"] == "resnet18"
    assert content["input"] == {
        "format": "RGB",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert content["config"]["MOCO"]["K"] == 24
    assert content["state"]["iteration"] == 4
    reference = torchvision.models.resnet18()
    missing, unexpected = reference.load_state_dict(content["encoder"], strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"} and not unexpected
    assert int(content["encoder"]["bn1.num_batches_tracked"]) == 4


def test_metrics_are_written_at_every_interval(tiny: list[str]) -> None:
    cfg = config(tiny)
    train.train(cfg)
    rows = records(Path(cfg.OUTPUT_DIR))
    assert [row["iteration"] for row in rows] == [2, 4]
    for row in rows:
        assert row["chance_loss"] == pytest.approx(math.log(25), abs=1e-5)
        assert math.isfinite(row["loss"]) and row["feature_std"] > 0
    assert rows[-1]["queue_fill"] == 1.0


def test_a_run_ends_at_the_first_measurement_that_reaches_its_goal(
    tiny: list[str], class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.9, 0.2, 0.5, 0.9])  # before the first step no goal is reached
    right = [torch.arange(100) < 100 * share for share in shares]
    monkeypatch.setattr(build, "KnnMonitor", lambda *_, **__: lambda encoder: right.pop(0))
    pairs = ["KNN.TRAIN", class_folders, "KNN.EVERY", 1, "KNN.GOAL", 50, "LOG_EVERY", 4]
    cfg = config(tiny, *pairs, "SOLVER.MAX_ITER", 12)
    path = train.train(cfg)
    rows = records(path.parent)
    # 24 images in batches of 8: measured after steps 3 and 6, which are logged too
    assert [row["iteration"] for row in rows if "knn_accuracy" in row] == [0, 3, 6]
    assert [row["iteration"] for row in rows if "loss" in row] == [3, 4, 6]
    assert checkpoints.read(path)["state"]["iteration"] == 6
    assert train.train(cfg, resume=True) == path


def test_the_same_seed_gives_the_same_weights_and_another_does_not(
    tiny: list[str], tmp_path: Path
) -> None:
    weights = []
    for name, seed in [("a", 0), ("b", 0), ("c", 1)]:
        pairs = ["OUTPUT_DIR", tmp_path / name, "SEED", seed, "SOLVER.MAX_ITER", 2]
        path = train.train(config(tiny, *pairs))
        weights.append(torch.load(path, weights_only=True)["encoder"]["conv1.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("every", "said"),
    [
        (1, "{}/checkpoint_"),
        (9, "the start: no checkpoint yet (CHECK"),
    ],
)
def test_a_stopped_run_says_what_resume_finds(
    every: int,
    said: str,
    tiny: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cfg = config(tiny, "CHECKPOINT_EVERY", every)
    stop_at(monkeypatch, 2)
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        train.train(cfg)
    assert caplog.messages[-1].startswith(f"--resume goes on from {said.format(cfg.OUTPUT_DIR)}")


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config(tiny, "CHECKPOINT_EVERY", 1)
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train.train(cfg)
    newest, before = checkpoints.in_folder(Path(cfg.OUTPUT_DIR))
    newest.write_bytes(newest.read_bytes()[:-5000])
    caplog.set_level(logging.INFO)
    train.train(cfg, resume=True)
    assert f"{newest} is no whole checkpoint" in caplog.text
    assert f"resumed from {before}" in caplog.text


def test_resuming_a_finished_run_returns_its_checkpoint_untouched(tiny: list[str]) -> None:
    cfg = config(tiny)
    path = train.train(cfg)
    before = path.read_bytes()
    assert train.train(cfg, resume=True) == path
    assert path.read_bytes() == before


def test_an_output_folder_with_a_run_is_not_overwritten(tiny: list[str]) -> None:
    cfg = config(tiny)
    train.train(cfg)
    with pytest.raises(InputError, match="holds a run already"):
        train.train(cfg)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_checkpoint(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tiny, "CHECKPOINT_EVERY", 2)
    step = loop.Loop._step

    def breaking(self: Any, raw: Any) -> None:
        step(self, raw)
        if self.iteration == 3:
            self.sums["loss"] = self.sums["loss"] * float("nan")

    monkeypatch.setattr(loop.Loop, "_step", breaking)
    with pytest.raises(InputError, match=r"not finite at iteration 3.*checkpoint_00000002\.pth"):
        train.train(cfg)
    assert not (Path(cfg.OUTPUT_DIR) / "checkpoint.pth").exists()


def test_bad_data_leaves_no_output_folder(tiny: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        train.train(config(tiny, "DATA.PATH", tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


def test_an_output_folder_that_cannot_be_made_is_refused(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder .*: name another output folder"):
        train.train(config(tiny, "OUTPUT_DIR", tmp_path / "file" / "run"))


def test_epochs_count_whole_batches(tiny: list[str]) -> None:
    cfg = config(tiny, "SOLVER.MAX_ITER", 0, "SOLVER.EPOCHS", 2, "SOLVER.LR_UPDATE", "epoch")
    path = train.train(cfg)
    assert torch.load(path, weights_only=True)["state"]["iteration"] == 6  # 24 images, batch 8
    rates = [row["lr"] for row in records(path.parent)]
    assert rates == pytest.approx([0.06, 0.03, 0.03])  # the rate after 2, 4 and 6 steps of 3 + 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(InputError, match="DEVICE is cuda"):
        pick_device("cuda")


def test_the_precision_key_is_obeyed() -> None:
    cpu = torch.device("cpu")
    assert use_bfloat16("bfloat16", cpu)
    assert not use_bfloat16("float32", cpu)
    assert isinstance(use_bfloat16("auto", cpu), bool)


def test_avx512_bfloat16_is_taken_on_amd_alone(tmp_path: Path) -> None:
    for vendor, flags, expected in [
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("GenuineIntel", "avx512f avx512_bf16", False),
        ("AuthenticAMD", "avx2", False),
    ]:
        (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\nflags\t\t: {flags}\n")
        assert fast_avx512_bfloat16(tmp_path / "cpuinfo") is expected
    assert not fast_avx512_bfloat16(tmp_path / "absent")


def test_bfloat16_runs_and_stays_close_to_float32(tiny: list[str], tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        pairs = ["PRECISION", precision, "OUTPUT_DIR", tmp_path / precision]
        cfg = config(tiny, *pairs, "SOLVER.MAX_ITER", 1)
        losses.append(records(train.train(cfg).parent)[0]["loss"])
    # bf16 features are good to some 0.4 %, and T = 0.1 makes that ten times more in the logits.
    assert losses[1] == pytest.approx(losses[0], abs=0.1)
    assert losses[1] != losses[0]
