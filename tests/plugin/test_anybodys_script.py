"""One import makes our yaml files work in a program that knows detectron2 alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from moco_det import zoo
from moco_det.data.scenes import ScenesPaths
from moco_det.weights.backbone import load_backbone
from moco_det.weights.convert import convert
from moco_det.weights.loading import backbone_names

pytest.importorskip("detectron2")
pytestmark = pytest.mark.detectron2

from detectron2.checkpoint import DetectionCheckpointer  # noqa: E402
from detectron2.config import CfgNode, get_cfg  # noqa: E402
from detectron2.engine import DefaultPredictor, DefaultTrainer  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402

from moco_det.foundation.errors import InputError  # noqa: E402
from moco_det.plugin import add_moco_det_config, register_dataset  # noqa: E402
from moco_det.plugin.modeling import any_width  # noqa: E402
from moco_det.plugin.trainer import build_detector  # noqa: E402

REPO = Path(__file__).resolve().parents[2]

# what shrinks a paper's run to a test's; all keys are detectron2's own
SMALL = [
    *("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", 64, "MODEL.RPN.POST_NMS_TOPK_TEST", 20),
    *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 5),
]


def config(name: str, weights: str = "") -> CfgNode:
    cfg = get_cfg()
    add_moco_det_config(cfg)
    cfg.merge_from_file(zoo.get_config_file(name))
    cfg.merge_from_list([*SMALL, "MODEL.WEIGHTS", weights])
    return cfg


@pytest.fixture(scope="module")
def resnet50_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted ResNet-50 of seeded random numbers: C4 and DC5 have no smaller one."""
    folder = tmp_path_factory.mktemp("resnet50")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(state, folder / "resnet50.pth")
    convert(folder / "resnet50.pth", folder / "backbone.pkl")
    return folder / "backbone.pkl"


@pytest.mark.parametrize("name", ["voc_R50_C4_24k_moco", "voc_R50_DC5_24k_moco"])
def test_detectron2s_predictor_takes_a_config_of_ours(name: str) -> None:
    cfg = config(name)
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    found = DefaultPredictor(cfg)(image)["instances"]
    assert len(found) <= 5 and found.image_size == (64, 80)
    assert found.has("pred_boxes") and not found.has("pred_masks")


@pytest.mark.parametrize(
    "name", ["voc_R50_C4_24k_moco", "voc_R50_DC5_24k_moco", "coco_R50_FPN_1x_moco"]
)
def test_detectron2s_checkpointer_puts_our_backbone_file_where_ours_does(
    name: str, resnet50_file: Path
) -> None:
    model = build_model(config(name, str(resnet50_file)))
    DetectionCheckpointer(model).load(str(resnet50_file))
    given = load_backbone(resnet50_file).model
    filled = backbone_names(model)
    assert len(given) == len(filled) == 265
    for bare, tensor in filled.items():
        np.testing.assert_array_equal(tensor.detach().numpy(), given[bare])


def test_a_config_of_one_of_detectron2s_own_programs_needs_the_import_alone(tmp_path: Path) -> None:
    program = """
from detectron2.config import get_cfg
from detectron2.modeling import build_model
import moco_det.plugin
from moco_det import zoo
cfg = get_cfg()
cfg.merge_from_file(zoo.get_config_file("voc_R50_C4_24k_random"))
cfg.MODEL.DEVICE = "cpu"
print(type(build_model(cfg).roi_heads).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "Res5ROIHeadsExtraNorm"


def test_detectron2s_own_trainer_trains_a_config_of_ours_and_its_predictor_opens_the_result(
    scenes: ScenesPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # its logger would stay set up for the tests that follow
    monkeypatch.setattr("detectron2.engine.defaults.setup_logger", lambda: None)
    cfg = config("voc_R50_C4_24k_random")
    train, test = (register_dataset(name) for name in (scenes.voc_train, scenes.voc_test))
    assert len(train) == 12 and len(test) == 4
    small = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    small += ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 20, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8]
    small += ["INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2]
    small += ["SOLVER.STEPS", (), "TEST.PRECISE_BN.NUM_ITER", 1, "DATALOADER.NUM_WORKERS", 0]
    small += ["DATASETS.TRAIN", (scenes.voc_train,), "DATASETS.TEST", ()]
    cfg.merge_from_list([*small, "OUTPUT_DIR", str(tmp_path)])
    trainer = DefaultTrainer(cfg)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    after = trainer.model.state_dict()
    norm = "roi_heads.res5.norm.weight"  # ours alone, so ours was trained
    assert not torch.equal(before[norm], after[norm].cpu())
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    predictor = DefaultPredictor(cfg)
    assert torch.equal(predictor.model.state_dict()[norm], after[norm])
    image = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    assert len(predictor(image)["instances"]) <= 5


@pytest.mark.parametrize(
    ("file", "builder"),
    [
        ("R18_FPN", "build_basic_resnet_fpn_backbone"),
        ("own_R18_C4", "build_basic_resnet_backbone"),
    ],
)
def test_a_narrow_resnet_is_built_by_name_and_by_train_nets_builder(
    file: str, builder: str
) -> None:
    cfg = get_cfg()
    add_moco_det_config(cfg)
    cfg.merge_from_file(str(REPO / "configs" / "quick" / f"{file}.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    assert any_width(cfg) is cfg  # others stay detectron2's own
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    with pytest.raises(AssertionError, match="Must set MODEL.RESNETS.RES2_OUT_CHANNELS = 64"):
        build_model(cfg)
    theirs = build_detector(cfg).state_dict()
    cfg.MODEL.BACKBONE.NAME = builder
    model = build_model(cfg)
    assert {n: t.shape for n, t in model.state_dict().items()} == {
        n: t.shape for n, t in theirs.items()
    }
    assert backbone_names(model)["res5.1.conv2.weight"].shape == (128, 128, 3, 3)
    cfg.MODEL.RESNETS.RES5_DILATION = 2
    with pytest.raises(ValueError, match="neither dilation"):
        build_model(cfg)


def test_a_head_without_a_norm_is_refused() -> None:
    cfg = config("voc_R50_C4_24k_moco")
    cfg.MODEL.RESNETS.NORM = ""
    with pytest.raises((ValueError, AssertionError)), torch.device("meta"):
        build_model(cfg)


def test_a_detector_that_detectron2_asserts_against_is_told_by_its_assertion() -> None:
    cfg = get_cfg()
    add_moco_det_config(cfg)
    cfg.merge_from_file(str(REPO / "configs" / "quick" / "own_R18_FPN.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.NUM_FC", 0])
    with pytest.raises(InputError, match=r"builds no model .*: assert len\(conv_dims\) \+ len"):
        build_detector(cfg)
