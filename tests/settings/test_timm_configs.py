"""The configs of timm's networks: matched arms, the authors' hyper-parameters, published rows."""

from __future__ import annotations

import pytest
import torch

from moco_det.results.matched import WEIGHTS_KEY, compare_configs
from moco_det.settings.config import dump, load_config
from moco_det.settings.zoo.matrix import published_row
from moco_det.settings.zoo.stems import STEMS
from moco_det.standalone import build_detector
from moco_det.weights.formats import RGB_IMAGENET
from moco_det.weights.loading import backbone_names
from tests.settings.test_configs import TIMM, header, leaf, numbers_in

pytest.importorskip("timm")


@pytest.mark.parametrize("stem", TIMM)
def test_the_arms_differ_in_their_weights_alone(stem: str) -> None:
    texts = {arm: dump(load_config(leaf(stem, arm))) for arm in STEMS[stem].initial}
    inputs = {arm: None if arm == "random" else RGB_IMAGENET for arm in texts}
    matched = compare_configs(texts, inputs)
    assert matched.ok and [d.key for d in matched.allowed] == [WEIGHTS_KEY], matched.lines()


@pytest.mark.parametrize("stem", TIMM)
def test_the_hyper_parameters_are_those_of_swins_authors(stem: str) -> None:
    cfg = load_config(leaf(stem, "random"))
    solver = cfg.SOLVER
    found = solver.OPTIMIZER, solver.BASE_LR, solver.MOMENTUM, solver.WEIGHT_DECAY
    assert found == ("AdamW", 1e-4, 0.9, 0.05) and solver.IMS_PER_BATCH == 16
    of_vitdet = (0.1, 14, 0.7) if "vit" in stem else (0.2, 0, 1.0)  # ViTDet's for ViT-B
    timm = cfg.MODEL.TIMM
    assert of_vitdet == (timm.DROP_PATH, timm.WINDOW, solver.LAYER_DECAY)
    assert cfg.MODEL.FPN.NORM == ""
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0 and not cfg.TEST.PRECISE_BN.ENABLED
    assert list(cfg.INPUT.MIN_SIZE_TRAIN) == list(range(480, 801, 32))
    voc = stem.startswith("voc")
    assert (24000 if voc else 90000) == solver.MAX_ITER and cfg.MODEL.MASK_ON is not voc


def test_mobys_row_stands_beside_the_supervised_one_of_its_source() -> None:
    numbers = {
        arm: numbers_in(header(leaf("coco_swin_tiny_FPN_1x", arm), "Published"))
        for arm in ("random", "sup", "moby")
    }
    assert numbers == {
        "random": {},
        "sup": {"box AP": 43.7, "mask AP": 39.8},
        "moby": {"box AP": 43.6, "mask AP": 39.6},
    }
    for stem in TIMM[1:]:
        assert not any(published_row(STEMS[stem], arm) for arm in STEMS[stem].initial.values())


@pytest.mark.parametrize(
    ("stem", "numbers"),
    [
        ("coco_swin_tiny_FPN_1x", 27_517_818),
        ("coco_convnext_tiny_FPN_1x", 27_818_592),
        ("coco_vit_small_1x", 21_665_664),
        ("coco_vit_small_dinov3_1x", 21_586_944),
    ],
)
def test_a_built_detector_holds_the_whole_network(stem: str, numbers: int) -> None:
    with torch.device("meta"):
        model = build_detector(load_config(leaf(stem, "random")))
    assert sum(tensor.numel() for tensor in backbone_names(model).values()) == numbers
