"""Values that no run can mean are named before anything is built, on either engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.settings.config import get_cfg, load_config
from moco_det.settings.values import schedule_warnings

BASE = Path(__file__).resolve().parents[2] / "configs" / "base" / "RCNN_FPN.yaml"
DATA = ["DATASETS.TRAIN", "('train',)", "DATASETS.TEST", "('test',)", "MODEL.DEVICE", "cpu"]
ENGINES = ["standalone", pytest.param("detectron2", marks=pytest.mark.detectron2)]

TIMM = "MODEL: {BACKBONE: {NAME: build_timm_fpn_backbone}, TIMM: {NAME: a"
BAD = [
    ("SOLVER: {GAMMA: }", "SOLVER.GAMMA has no value"),
    ("SOLVER: {GAMMA: -0.5}", "SOLVER.GAMMA is -0.5: it must not be below zero"),
    ("SOLVER: {BASE_LR: .inf}", "SOLVER.BASE_LR is inf: inf is no finite number"),
    ("SOLVER: {BASE_LR: 1.0e+39}", "no finite number of float32"),
    ("SOLVER: {STEPS: [a]}", "SOLVER.STEPS is .*'a' is no number"),
    ("SOLVER: {STEPS: [20, 10]}", "SOLVER.STEPS is .20, 10.: it lists rising whole"),
    ("SOLVER: {STEPS: [1.5]}", "SOLVER.STEPS is .1.5"),
    ("SOLVER: {WARMUP_ITERS: -3}", "SOLVER.WARMUP_ITERS is -3"),
    ("SOLVER: {CHECKPOINT_PERIOD: 0}", "SOLVER.CHECKPOINT_PERIOD is 0"),
    ("DATALOADER: {NUM_WORKERS: -1}", "DATALOADER.NUM_WORKERS is -1"),
    ("INPUT: {MIN_SIZE_TRAIN: [a]}", "INPUT.MIN_SIZE_TRAIN is .*'a' is no number"),
    ("INPUT: {MIN_SIZE_TRAIN: [0]}", "INPUT.MIN_SIZE_TRAIN is .0"),
    ("MODEL: {PIXEL_MEAN: [1.0]}", "MODEL.PIXEL_MEAN is .* it has 3 numbers"),
    ("MODEL: {ROI_BOX_HEAD: {BBOX_REG_WEIGHTS: []}}", "BBOX_REG_WEIGHTS is .* it has 4 numbers"),
    ("MODEL: {PIXEL_STD: [0.0, 1.0, 1.0]}", "MODEL.PIXEL_STD is .* above zero"),
    ("MODEL: {FPN: {OUT_CHANNELS: 0}}", "MODEL.FPN.OUT_CHANNELS is 0"),
    ("MODEL: {FPN: {IN_FEATURES: []}}", "MODEL.FPN.IN_FEATURES is empty"),
    ("MODEL: {RPN: {BATCH_SIZE_PER_IMAGE: 0}}", "MODEL.RPN.BATCH_SIZE_PER_IMAGE is 0"),
    ("MODEL: {RPN: {POST_NMS_TOPK_TRAIN: 0}}", "POST_NMS_TOPK_TRAIN is 0"),
    ("MODEL: {RPN: {IOU_THRESHOLDS: [0.3]}}", "MODEL.RPN.IOU_LABELS is .* that is 2"),
    ("MODEL: {ROI_HEADS: {IOU_THRESHOLDS: [0.6, 0.5], IOU_LABELS: [0, 0, 1]}}", "rising"),
    ("MODEL: {ROI_HEADS: {SCORE_THRESH_TEST: 2.0}}", "must lie between 0 and 1"),
    ("MODEL: {ROI_BOX_HEAD: {POOLER_RESOLUTION: 0}}", "POOLER_RESOLUTION is 0"),
    ("MODEL: {ANCHOR_GENERATOR: {ASPECT_RATIOS: [[0.0]]}}", "ASPECT_RATIOS is .* above zero"),
    ("MODEL: {ANCHOR_GENERATOR: {SIZES: [32, 64]}}", "SIZES is .*: write a list for each level"),
    ("MODEL: {RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, NUM_GROUPS: 7}}", "NUM_GROUPS must be 1"),
    ("MODEL: {WEIGHTS: a.pkl, BACKBONE: {FREEZE_AT: 9}}", "FREEZE_AT is 9: it must be at most 5"),
    ("MODEL: {BACKBONE: {NAME: build_timm_fpn_backbone}}", "needs MODEL.TIMM.NAME, as convnext_"),
    ("MODEL: {TIMM: {NAME: a}}", "TIMM.NAME a needs MODEL.BACKBONE.NAME build_timm_fpn_backbone"),
    ("MODEL: {TIMM: {DROP_PATH: 0.1}}", "MODEL.TIMM.DROP_PATH 0.1 needs MODEL.BACKBONE.NAME"),
    ("MODEL: {TIMM: {WINDOW: 14}}", "MODEL.TIMM.WINDOW 14 needs MODEL.BACKBONE.NAME build_timm"),
    (f"{TIMM}, WINDOW: 1000}}}}", "MODEL.TIMM.WINDOW is 1000: it must be at most 256"),
    (f"{TIMM}, WINDOW: -1}}}}", "MODEL.TIMM.WINDOW is -1: it must"),
    ("MODEL: {TIMM: {NORM: GN}}", "MODEL.TIMM.NORM is 'GN'; .* 'SyncBN', 'FrozenBN'"),
    (f"{TIMM}, DROP_PATH: 1.5}}}}", "MODEL.TIMM.DROP_PATH is 1.5: it must lie between 0 and 1"),
    (f"{TIMM}, NORM: FrozenBN}}}}", "MODEL.TIMM.NORM FrozenBN without MODEL.WEIGHTS normalises"),
    (f"{TIMM}}}}}\nSOLVER: {{CUDA_GRAPHS: true}}", "SOLVER.CUDA_GRAPHS"),
    (f"{TIMM}}}, FPN: {{IN_FEATURES: [res3, res4]}}}}", "IN_FEATURES .*: name res5 too"),
    ("SOLVER: {LAYER_DECAY: 0.9}", "LAYER_DECAY 0.9 needs MODEL.BACKBONE.NAME build_timm_fpn_b"),
    ("SOLVER: {LAYER_DECAY: 1.5}", "SOLVER.LAYER_DECAY is 1.5: it must be at most 1"),
    ("SOLVER: {OPTIMIZER: Lion}", "SOLVER.OPTIMIZER is 'Lion'; .* 'SGD', 'AdamW'"),
    ("SOLVER: {OPTIMIZER: AdamW, NESTEROV: true}", "AdamW needs NESTEROV False"),
    ("SOLVER: {OPTIMIZER: AdamW, MOMENTUM: 1.0}", "AdamW needs .* MOMENTUM below 1"),
    ("TEST: {DETECTIONS_PER_IMAGE: 0}", "TEST.DETECTIONS_PER_IMAGE is 0"),
    ("TEST: {PRECISE_BN: {NUM_ITER: 0}}", "TEST.PRECISE_BN.NUM_ITER is 0"),
    ("SEED: 99999999999", "SEED is 99999999999: it must be at most"),
    ("OUTPUT_DIR: ''", "OUTPUT_DIR is empty"),
]


def load(engine: str, folder: Path, text: str, *overrides: str) -> Any:
    file = folder / "c.yaml"
    file.write_text(f"_BASE_: {BASE}\n{text}\n", encoding="utf-8")
    if engine == "detectron2":
        pytest.importorskip("detectron2")
        from moco_det.plugin.config import load_config as load_detectron2

        return load_detectron2(file, [*DATA, *overrides])
    return load_config(file, [*DATA, *overrides])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("text", "message"), BAD, ids=[text for text, _ in BAD])
def test_a_value_that_no_run_can_mean_is_named(
    engine: str, text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        load(engine, tmp_path, text)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_number_of_twenty_digits_on_the_command_line_is_named(
    engine: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="FC_DIM is 99999999999999999999: no key needs as many"):
        load(engine, tmp_path, "", "MODEL.ROI_BOX_HEAD.FC_DIM", "9" * 20)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_key_without_a_value_on_the_command_line_is_named(engine: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on the command line: SOLVER.GAMMA has no value"):
        load(engine, tmp_path, "", "SOLVER.GAMMA", "None")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_key_that_may_be_without_a_value_is_a_number_otherwise(
    engine: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"WEIGHT_DECAY_BIAS is \[0\]: it is a number or nothing"):
        load(engine, tmp_path, "SOLVER: {WEIGHT_DECAY_BIAS: [0]}")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_timm_network_is_not_held_to_the_norm_of_resnets(engine: str, tmp_path: Path) -> None:
    cfg = load(engine, tmp_path, f"{TIMM}}}, RESNETS: {{NORM: FrozenBN}}}}")
    assert cfg.MODEL.TIMM.NAME == "a" and cfg.MODEL.WEIGHTS == ""


def test_two_drops_of_the_rate_in_one_iteration_stay(tmp_path: Path) -> None:
    # what `quickstart --finetune-steps 3` and a config scaled to more processes come to
    assert tuple(load("standalone", tmp_path, "SOLVER: {STEPS: [2, 2]}").SOLVER.STEPS) == (2, 2)


@pytest.mark.detectron2
def test_two_drops_in_one_iteration_are_more_than_detectron2_can(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"STEPS \(2, 2\).* make no schedule"):
        load("detectron2", tmp_path, "SOLVER: {STEPS: [2, 2]}")


@pytest.mark.parametrize("engine", ENGINES)
def test_values_that_mean_something_stay(engine: str, tmp_path: Path) -> None:
    cfg = load(
        engine,
        tmp_path,
        "MODEL: {PIXEL_STD: [1, 1, 1]}\nSOLVER: {WEIGHT_DECAY_NORM: , STEPS: [], WARMUP_ITERS: 0}",
    )
    assert list(cfg.MODEL.PIXEL_STD) == [1, 1, 1] and cfg.SOLVER.WEIGHT_DECAY_NORM is None


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"MAX_ITER": 9000, "STEPS": (6000, 60000, 80000)}, ["lowered at 60000, 80000"]),
        ({"MAX_ITER": 500, "STEPS": ()}, ["lower SOLVER.WARMUP_ITERS, which is 1000"]),
        ({"MAX_ITER": 500}, ["which is 1000", "lowered at 30000"]),
        ({"MAX_ITER": 9000, "LR_SCHEDULER_NAME": "WarmupCosineLR"}, []),
        ({"MAX_ITER": 9000, "LR_SCHEDULER_NAME": "WarmupStepWithFixedGammaLR"}, []),
        ({"MAX_ITER": 30001}, []),
    ],
)
def test_what_the_rate_never_comes_to_is_a_warning(keys: dict[str, Any], said: list[str]) -> None:
    found = schedule_warnings({**get_cfg().SOLVER, **keys})
    assert len(found) == len(said)
    assert all(words in line for words, line in zip(said, found, strict=True))
