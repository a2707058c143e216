"""What no memory holds is refused by what it would need, before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moco_det.foundation.errors import InputError
from moco_det.foundation.memory import check_workers, ran_out
from moco_det.runs.memory import check_memory
from moco_det.settings.config import load_config
from pretrain.build import check_memory as check_pretraining
from pretrain.config import load_config as load_pretraining

REPO = Path(__file__).resolve().parents[2]
QUICK = REPO / "configs" / "quick" / "R18_FPN.yaml"
PRETRAIN = REPO / "configs" / "pretrain" / "quick" / "moco_v2_r18.yaml"
DATA = ["DATASETS.TRAIN", "('a',)", "DATASETS.TEST", "('b',)", "MODEL.DEVICE", "cpu"]
HUGE = {
    "MODEL.FPN.OUT_CHANNELS": "100000000",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "1000000000000",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "100000000",
    "MODEL.ROI_HEADS.NUM_CLASSES": "1000000000",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": "100000",
    "MODEL.ROI_BOX_HEAD.NUM_FC": "100000000",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "1000000000",
    "TEST.DETECTIONS_PER_IMAGE": "1000000000",
    "INPUT.MIN_SIZE_TRAIN": "(10000000,)",
    "SOLVER.IMS_PER_BATCH": "100000000",
    "DATALOADER.NUM_WORKERS": "100000",
}


def test_a_config_that_fits_passes_and_draws_no_random_number() -> None:
    cfg, pretraining = load_config(QUICK, DATA), load_pretraining(PRETRAIN)
    before = torch.get_rng_state()
    check_memory(cfg, 1)
    check_pretraining(pretraining, torch.device("cpu"), images=100, classes=2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("key", HUGE)
def test_a_detector_that_no_memory_holds_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(InputError, match=key):
        check_memory(load_config(QUICK, [*DATA, key, HUGE[key]]), 1)


@pytest.mark.parametrize(
    ("keys", "images", "named"),
    [
        (["MOCO.K", "1000000000000"], 100, "MOCO.K"),
        (["MOCO.K", str(2**62)], 100, "MOCO.K"),
        (["ENCODER.DIM", "100000000"], 100, "ENCODER.DIM"),
        (["SOLVER.BATCH", "100000000"], 10**9, "SOLVER.BATCH"),
        (["METHOD", "memory_bank"], 10**12, "number of images"),
        (["METHOD", "supervised"], 100, "number of classes"),
    ],
)
def test_a_pretraining_that_no_memory_holds_is_refused_by_its_key(
    keys: list[str], images: int, named: str
) -> None:
    cfg = load_pretraining(PRETRAIN, keys)
    with pytest.raises(InputError, match=named) as caught:
        check_pretraining(cfg, torch.device("cpu"), images=images, classes=10**9)
    assert "\n" not in str(caught.value)


def test_more_workers_than_a_machine_can_use_are_refused_with_a_number() -> None:
    check_workers("DATA.WORKERS", 64)
    with pytest.raises(InputError, match=r"DATA.WORKERS is 100000: give \d+ or fewer"):
        load_pretraining(PRETRAIN, ["DATA.WORKERS", "100000"])


def test_an_allocation_that_fails_is_known_as_one() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert ran_out(caught.value) and ran_out(MemoryError()) and not ran_out(RuntimeError("x"))
