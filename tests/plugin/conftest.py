"""The smallest detector, data and weights that go through the tool's real path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision

from moco_det.data.scenes import ScenesPaths, write_scenes
from moco_det.weights.convert import convert
from moco_det_tools.entry import run
from moco_det_tools.train_net import main

REPO = Path(__file__).resolve().parents[2]
CONFIG = REPO / "configs" / "quick" / "R18_FPN.yaml"
CLASSES = 8  # of the painted scenes

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.FPN.OUT_CHANNELS": "32",
    "MODEL.ANCHOR_GENERATOR.SIZES": "[[8], [16], [32], [64], [128]]",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "50",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "50",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "30",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16",
    "MODEL.ROI_HEADS.NUM_CLASSES": str(CLASSES),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "32",
    "MODEL.ROI_MASK_HEAD.NUM_CONV": "1",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "32",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.BASE_LR": "0.005",
    "SOLVER.MAX_ITER": "4",
    "SOLVER.STEPS": "(3,)",
    "SOLVER.WARMUP_ITERS": "2",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.DETECTIONS_PER_IMAGE": "5",
    "TEST.PRECISE_BN.NUM_ITER": "1",
    "SEED": "3",
}

Tool = Callable[..., int]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> ScenesPaths:
    """Sixteen labelled images of 64 pixels, twelve to train on and four to test."""
    folder = tmp_path_factory.mktemp("plugin") / "scenes"
    return write_scenes(folder, seed=1, unlabelled=0, train=12, test=4, size=64, progress=False)


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted ResNet-18 of seeded random numbers."""
    folder = tmp_path_factory.mktemp("plugin_weights")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, folder / "resnet18.pth")
    convert(folder / "resnet18.pth", folder / "backbone.pkl")
    return folder / "backbone.pkl"


@pytest.fixture(scope="session")
def tiny(scenes: ScenesPaths) -> Callable[..., list[str]]:
    """KEY VALUE ... of the tiny detector on the scenes, some of them changed."""

    def overrides(**changes: str) -> list[str]:
        keys = {
            **TINY,
            "DATASETS.TRAIN": repr((scenes.train,)),
            "DATASETS.TEST": repr((scenes.test,)),
            **{key.replace("__", "."): value for key, value in changes.items()},
        }
        return [text for pair in keys.items() for text in pair]

    return overrides


@pytest.fixture(scope="session")
def train_net(tiny: Callable[..., list[str]]) -> Tool:
    """tools/train_net.py in this process; its exit code."""

    def call(*options: str, config: Path = CONFIG, **changes: str) -> int:
        argv = ["--config-file", str(config), *options, *tiny(**changes)]
        return run(lambda: main(argv))

    return call
