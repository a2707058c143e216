from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from moco_det.foundation.errors import InputError
from moco_det_tools import plan as tool
from pretrain.build import build_method
from pretrain.config import load_config
from pretrain.encoders import ARCHITECTURES, Encoder
from pretrain.plan import PretrainPlan, make_plan, measured_rate, saved_bytes
from tests.pretrain.small_trunk import SmallTrunk

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
V1 = CONFIGS / "moco_v1_r50_in1m_200ep.yaml"
SMALL = "SOLVER.BATCH 8 SOLVER.MAX_ITER 10 AUGMENT.SIZE 32 ENCODER.ARCH resnet18 ENCODER.DIM 8"
IN_1M, BILLION = 1_281_167, 10**9


def small(*pairs: object) -> Any:
    return load_config(None, [*SMALL.split(), *map(str, pairs)])


def plan(*pairs: object, images: int = 100, gpus: int = 0, **named: Any) -> PretrainPlan:
    return make_plan(small(*pairs), images=images, gpus=gpus, **named)


@pytest.fixture
def small_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "resnet18", SmallTrunk)


def test_the_published_run_takes_its_published_time() -> None:
    made = make_plan(load_config(V1), images=IN_1M, gpus=8)
    assert (made.steps, made.steps_per_epoch) == (1_000_800, 5004)
    assert made.hours == pytest.approx(53, rel=0.03)  # 5004 whole batches leave some images out
    assert "53 hours on 8 V100" in made.lines()[-2]


@pytest.mark.parametrize("method", ["moco", "end_to_end", "memory_bank", "inst_disc", "supervised"])
def test_counted_state_is_the_state_of_the_real_method(method: str, small_trunk: None) -> None:
    pairs = ["METHOD", method, "MOCO.K", 40, "MEMORY_BANK.K", 10, "INST_DISC.K", 6]
    real = build_method(small(*pairs), images=100, classes=10, bfloat16=False)
    made = plan(*pairs, classes=10)
    tensors = [*real.parameters(), *real.buffers()]
    assert made.parts["encoders"] + made.parts["dictionary"] == sum(t.nbytes for t in tensors)
    trained = sum(p.nbytes for p in real.parameters() if p.requires_grad)
    assert made.parts["training"] == 2 * trained  # gradients and momentum


def test_the_queue_does_not_grow_with_the_images_and_the_bank_grows_by_a_row(
    small_trunk: None,
) -> None:
    queue = [plan("MOCO.K", 64, images=n).parts["dictionary"] for n in (100, BILLION)]
    assert queue[0] == queue[1]
    for dtype, width in [("float32", 4), ("float16", 2)]:
        pairs = ["METHOD", "memory_bank", "MEMORY_BANK.K", 10, "BANK.DTYPE", dtype]
        bank = [plan(*pairs, images=n).parts["dictionary"] for n in (100, BILLION)]
        assert bank[1] - bank[0] == (BILLION - 100) * (8 * width + 1)  # a row and its mark


def test_memory_is_shared_out_and_several_processes_send_buckets(small_trunk: None) -> None:
    one, four = plan(gpus=1), plan(gpus=4)
    assert four.parts["activations"] * 4 == one.parts["activations"]
    assert four.parts["training"] * 2 == one.parts["training"] * 3
    assert four.images_per_second == 4 * one.images_per_second


def test_saved_bytes_are_what_autograd_keeps() -> None:
    """Of resnet18 at 64 px, by hand: inputs of convolutions, norms, ReLUs and the pool."""
    kept = saved_bytes("resnet18", size=64, bfloat16=False)
    stem = 3 * 64 * 64 + 2 * 64 * 32 * 32 + 64 * 16 * 16 * 3  # pixels, conv and ReLU out, pool
    # A block keeps the outputs of two convolutions and of two ReLUs; a step down one more.
    stages = sum(
        channels * side * side * (2 * 4 + (channels > 64))
        for channels, side in [(64, 16), (128, 8), (256, 4), (512, 2)]
    )
    assert kept == pytest.approx(4 * (stem + stages), rel=0.05)
    assert 0.45 < saved_bytes("resnet18", size=64, bfloat16=True) / kept < 0.75


def test_a_planned_step_needs_no_more_activations_than_planned(small_trunk: None) -> None:
    """The peak of a real step on the CPU, as torch's allocator reports it."""
    cfg = small("MOCO.K", 64, "SOLVER.BATCH", 64, "AUGMENT.SIZE", 64)
    made = make_plan(cfg, images=100, gpus=0)
    encoder = Encoder("resnet18", head="fc", dim=8)
    pixels = torch.randn(64, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.profiler.profile(profile_memory=True) as profile:
        held = encoder(pixels)
    grown = sum(e.self_cpu_memory_usage for e in profile.key_averages())
    assert held.requires_grad and 0.5 * grown < made.parts["activations"] < 3 * grown


@pytest.mark.parametrize(
    ("pairs", "memory", "match"),
    [
        (["METHOD", "memory_bank"], 16, "the dictionary: use METHOD moco"),
        (["METHOD", "inst_disc", "INST_DISC.LOSS", "softmax"], 10**6, None),
    ],
)
def test_a_bank_of_a_billion_rows_does_not_fit_a_gpu(
    pairs: list[str], memory: float, match: str | None, small_trunk: None
) -> None:
    made = plan(*pairs, images=BILLION, gpus=1)
    if match is None:
        made.refuse_what_cannot_fit(memory=memory, host_memory=None)
        return
    with pytest.raises(InputError, match=match):
        made.refuse_what_cannot_fit(memory=memory, host_memory=None)


def test_images_on_the_device_are_planned_and_refused_where_they_are_too_many(
    small_trunk: None,
) -> None:
    pairs = ["DATA.ON_DEVICE", True, "DATA.SHORTER_SIDE", 128]
    made = plan(*pairs, images=IN_1M, gpus=1)
    assert made.parts["images"] == IN_1M * 128 * 128 * 3
    assert made.device == plan(images=IN_1M, gpus=1).device + made.parts["images"]
    with pytest.raises(InputError, match="is the images: set DATA.ON_DEVICE False"):
        made.refuse_what_cannot_fit(memory=16, host_memory=None)


def test_a_list_of_a_billion_files_does_not_fit_a_host_and_shards_do(small_trunk: None) -> None:
    listed = plan("DATA.PATH", "images", images=BILLION, gpus=1)
    with pytest.raises(InputError, match="use WebDataset shards"):
        listed.refuse_what_cannot_fit(memory=16, host_memory=30)
    shards = plan("DATA.PATH", "s-{000..999}.tar", images=BILLION, gpus=1)
    shards.refuse_what_cannot_fit(memory=16, host_memory=30)


def test_what_speaks_against_the_settings_is_said(small_trunk: None) -> None:
    lines = plan("MOCO.K", 4096, "MOCO.M", 0.99, images=1000).lines()
    assert sum(line.startswith("warning: ") for line in lines) == 2  # drift; more than the images


def test_a_number_of_gpus_that_does_not_divide_is_refused(small_trunk: None) -> None:
    with pytest.raises(InputError, match="SOLVER.BATCH 8 cannot be shared equally by 3"):
        plan(gpus=3)
    with pytest.raises(InputError, match="ENCODER.BN_SPLITS 2 over 4 processes"):
        plan("ENCODER.BN_SPLITS", 2, gpus=4)


def test_the_rate_is_measured_on_the_method(
    small_trunk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.plan.SECONDS", 0.0)
    assert measured_rate(small("MOCO.K", 16)) > 0


def test_a_run_on_the_cpu_takes_no_time_from_the_rate_of_gpus(
    small_trunk: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = plan(gpus=0)
    assert unknown.hours is None and "time: not known" in unknown.lines()
    assert "no rate of a CPU is published; --measure takes one here" in "\n".join(unknown.lines())
    assert plan(gpus=1).hours is not None
    monkeypatch.setattr("pretrain.plan.measured_rate", lambda cfg: 2.5)
    assert tool.main(["--images", "100", "--gpus", "0", "--measure", *SMALL.split()]) == 0
    assert "2.5 images/s as measured here" in capsys.readouterr().out


def test_the_tool_prints_the_plan_and_refuses(
    small_trunk: None, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--images", "1000000000", "--gpus", "1", "--memory", "16", "--rate", "100"]
    assert tool.main([*args, *SMALL.split()]) == 0
    said = capsys.readouterr().out
    assert "1,000,000,000 images" in said and "100 images/s as given" in said
    assert said.endswith("fits: 16 GiB per process\n")
    with pytest.raises(InputError, match="does not fit"):
        tool.main([*args, *SMALL.split(), "METHOD", "memory_bank"])
    for option in ("--rate", "--memory", "--host-memory"):
        with pytest.raises(InputError, match=f"{option} -1: it must be above 0"):
            tool.main(["--images", "5", "--gpus", "1", option, "-1"])
    with pytest.raises(InputError, match="--gpus: -1 is below 0"):
        tool.main(["--images", "5", "--gpus", "-1"])
    with pytest.raises(InputError, match="--images: the set has 0 images"):
        tool.main(["--images", "0", "--gpus", "1"])
