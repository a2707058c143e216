"""The linear rule on other numbers of processes, and the warning of BN over single images."""

from __future__ import annotations

import pytest

from moco_det.foundation.errors import InputError
from moco_det.standalone.scaling import scale_to_processes, scaling_line, small_norm_groups
from tests.standalone.tiny import tiny_config

EIGHT = {
    "SOLVER.REFERENCE_WORLD_SIZE": "8",
    "SOLVER.IMS_PER_BATCH": "16",
    "SOLVER.BASE_LR": "0.02",
    "SOLVER.MAX_ITER": "24000",
    "SOLVER.STEPS": "(18000, 22000)",
    "SOLVER.WARMUP_ITERS": "100",
    "SOLVER.CHECKPOINT_PERIOD": "5000",
    "TEST.EVAL_PERIOD": "1000",
}


def test_an_eighth_of_the_batch_learns_an_eighth_as_fast_for_eight_times_as_long() -> None:
    cfg = tiny_config(EIGHT)
    scaled = scale_to_processes(cfg, 1)
    assert scaled.SOLVER.IMS_PER_BATCH == 2
    assert pytest.approx(0.0025) == scaled.SOLVER.BASE_LR
    assert scaled.SOLVER.MAX_ITER == 192000
    assert tuple(scaled.SOLVER.STEPS) == (144000, 176000)
    assert scaled.SOLVER.WARMUP_ITERS == 800
    assert scaled.SOLVER.CHECKPOINT_PERIOD == 40000 and scaled.TEST.EVAL_PERIOD == 8000
    assert scaled.SOLVER.REFERENCE_WORLD_SIZE == 1 and scaled.is_frozen()
    assert cfg.SOLVER.IMS_PER_BATCH == 16  # what was asked for stays as it was
    line = scaling_line(cfg, scaled)
    assert "IMS_PER_BATCH 16 becomes 2" in line and "0.02 0.0025" in line


def test_more_processes_are_scaled_the_other_way() -> None:
    scaled = scale_to_processes(tiny_config(EIGHT), 16)
    assert (scaled.SOLVER.IMS_PER_BATCH, scaled.SOLVER.MAX_ITER) == (32, 12000)
    assert pytest.approx(0.04) == scaled.SOLVER.BASE_LR


@pytest.mark.parametrize(("reference", "processes"), [("0", 1), ("0", 4), ("8", 8)])
def test_nothing_is_scaled_unless_asked_for(reference: str, processes: int) -> None:
    cfg = tiny_config(EIGHT | {"SOLVER.REFERENCE_WORLD_SIZE": reference})
    assert scale_to_processes(cfg, processes) is cfg


@pytest.mark.parametrize("reference", ["3", "-1"])
def test_a_reference_that_does_not_divide_the_batch_is_bad_input(reference: str) -> None:
    with pytest.raises(InputError, match="REFERENCE_WORLD_SIZE"):
        tiny_config(EIGHT | {"SOLVER.REFERENCE_WORLD_SIZE": reference})


@pytest.mark.parametrize(
    ("norm", "batch", "processes", "warned"),
    [
        ("BN", 2, 1, False),
        ("BN", 2, 2, True),
        ("BN", 1, 1, True),
        ("SyncBN", 2, 2, False),
        ("SyncBN", 1, 1, True),
        ("FrozenBN", 1, 1, False),
    ],
)
def test_a_norm_over_single_images_is_warned_of(
    norm: str, batch: int, processes: int, warned: bool
) -> None:
    cfg = tiny_config(
        {
            "MODEL.WEIGHTS": "some.pkl",  # frozen norms need some
            "MODEL.RESNETS.NORM": norm,
            "MODEL.FPN.NORM": "FrozenBN",
            "SOLVER.IMS_PER_BATCH": str(batch),
        }
    )
    lines = small_norm_groups(cfg, processes)
    assert len(lines) == int(warned)
    if warned:
        assert lines[0].startswith(f"MODEL.RESNETS.NORM {norm} normalises over 1 image")


def test_the_norms_that_a_backbone_adds_are_warned_of_too() -> None:
    changes = {"MODEL.RESNETS.NORM": "FrozenBN", "SOLVER.IMS_PER_BATCH": "1"}
    changes["MODEL.WEIGHTS"] = "some.pkl"
    assert [line.split()[0] for line in small_norm_groups(tiny_config(changes), 1)] == [
        "MODEL.FPN.NORM"
    ]


@pytest.mark.parametrize(
    ("norm", "named"), [("BN", ["MODEL.TIMM.NORM", "MODEL.FPN.NORM"]), ("", ["MODEL.FPN.NORM"])]
)
def test_a_timm_networks_own_norm_is_warned_of_in_the_place_of_a_resnets(
    norm: str, named: list[str]
) -> None:
    lines = small_norm_groups(tiny_config({"SOLVER.IMS_PER_BATCH": "1"}), 1, norm)
    assert [line.split()[0] for line in lines] == named
