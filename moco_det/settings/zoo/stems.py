"""The settings of the matrix: data, detector and schedule, the same for every arm of a table.

A stem says only how it differs from the file it builds on. Hyper-parameters are those of the
MoCo papers (v1, section 4.2 and appendix A; released code, detection/configs) and, where these
follow detectron2's baselines, of detectron2's configs (COCO: batch 16, learning rate 0.02, steps
at 60k and 80k of 90k iterations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moco_det.settings.zoo.arms import ARMS

VOC_SIZES = [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
COCO_SIZES = [640, 672, 704, 736, 768, 800]
DETECTRON2_ARMS = ("random", "sup", "sup_msra", "moco")


@dataclass(frozen=True)
class Stem:
    """One table: `base` is the file it builds on, in configs/base/, `keys` what differs from it.

    `tables` are published tables with rows of this setting, the papers' own first. `seconds` an
    iteration on 8 V100s with frozen BN, as detectron2's model zoo has them for `like`. `note` is
    what a reader must know of the setting or of its published numbers.
    """

    what: str
    base: str
    keys: Mapping[str, Any]
    iterations: int
    seconds: float
    like: str
    tables: tuple[str, ...] = ()
    arms: tuple[str, ...] = tuple(ARMS)
    note: str = ""


def _voc(train: list[str], iterations: int, steps: list[int]) -> dict[str, Any]:
    return {
        "MODEL": {"ROI_HEADS": {"NUM_CLASSES": 20}},
        "INPUT": {"MIN_SIZE_TRAIN": VOC_SIZES, "MIN_SIZE_TEST": 800},
        "DATASETS": {"TRAIN": train, "TEST": ["voc_2007_test"]},
        "SOLVER": {
            "IMS_PER_BATCH": 16,
            "BASE_LR": 0.02,
            "MAX_ITER": iterations,
            "STEPS": steps,
            "WARMUP_ITERS": 100,
        },
    }


def _schedule(iterations: int, steps: list[int]) -> dict[str, Any]:
    return {"MAX_ITER": iterations, "STEPS": steps}


_COCO_SOLVER = {"IMS_PER_BATCH": 16, "BASE_LR": 0.02}
# steps of 1x and 2x; of 6x in the last 60k and 20k iterations, as detectron2's 3x and 9x have them
_1X, _2X = _schedule(90000, [60000, 80000]), _schedule(180000, [120000, 160000])
_6X = _schedule(540000, [480000, 520000])
_COCO = {
    "MODEL": {"MASK_ON": True, "ROI_HEADS": {"NUM_CLASSES": 80}},
    "INPUT": {"MIN_SIZE_TRAIN": COCO_SIZES, "MIN_SIZE_TEST": 800},
    "DATASETS": {"TRAIN": ["coco_2017_train"], "TEST": ["coco_2017_val"]},
    "SOLVER": {**_COCO_SOLVER, **_1X},
}
_0712 = ["voc_2007_trainval", "voc_2012_trainval"]
_C4_VOC, _DC5 = "Faster R-CNN R50-C4 on VOC", "Faster R-CNN R50-DC5 on COCO"
_FPN, _C4 = "Mask R-CNN R50-FPN", "Mask R-CNN R50-C4"
_SIX = "6x is six times the iterations of 1x, its steps 60k and 20k before the end"

STEMS: dict[str, Stem] = {
    "voc_R50_C4_24k": Stem(
        "Faster R-CNN R50-C4, VOC 07+12 trainval to 07 test, 24k iterations",
        base="RCNN_C4",
        keys=_voc(_0712, 24000, [18000, 22000]),
        iterations=24000,
        seconds=0.537,
        like=_C4_VOC,
        tables=("moco_v1.table2b", "moco_v1.table3b", "moco_v2.table1", "repro.openselfsup.voc"),
    ),
    "voc_R50_DC5_24k": Stem(
        "Faster R-CNN R50-dilated-C5, VOC 07+12 trainval to 07 test, 24k iterations",
        base="RCNN_DC5",
        keys=_voc(_0712, 24000, [18000, 22000]),
        iterations=24000,
        seconds=0.380,
        like=_DC5,
        tables=("moco_v1.table2a", "moco_v1.table3a"),
    ),
    "voc07_R50_C4_9k": Stem(
        "Faster R-CNN R50-C4, VOC 07 trainval to 07 test, 9k iterations",
        base="RCNN_C4",
        keys=_voc(["voc_2007_trainval"], 9000, [6750, 8250]),
        iterations=9000,
        seconds=0.537,
        like=_C4_VOC,
        tables=("moco_v1.table4",),
        note="no source states the steps of 9k: they stand where those of 24k do, at 3/4 and 11/12",
    ),
    "coco_R50_FPN_1x": Stem(
        "Mask R-CNN R50-FPN, COCO 2017 train to val, 1x",
        base="RCNN_FPN",
        keys=_COCO,
        iterations=90000,
        seconds=0.261,
        like=_FPN,
        tables=("moco_v1.table5a",),
    ),
    "coco_R50_FPN_2x": Stem(
        "Mask R-CNN R50-FPN, COCO 2017 train to val, 2x",
        base="coco_R50_FPN_1x",
        keys={"SOLVER": _2X},
        iterations=180000,
        seconds=0.261,
        like=_FPN,
        tables=("moco_v1.table5b",),
    ),
    "coco_R50_FPN_6x": Stem(
        "Mask R-CNN R50-FPN, COCO 2017 train to val, 6x",
        base="coco_R50_FPN_1x",
        keys={"SOLVER": _6X},
        iterations=540000,
        seconds=0.261,
        like=_FPN,
        tables=("moco_v1.tableA1b",),
        note=_SIX,
    ),
    "coco_R50_C4_1x": Stem(
        "Mask R-CNN R50-C4, COCO 2017 train to val, 1x",
        base="RCNN_C4",
        keys=_COCO,
        iterations=90000,
        seconds=0.584,
        like=_C4,
        tables=("moco_v1.table5c",),
    ),
    "coco_R50_C4_2x": Stem(
        "Mask R-CNN R50-C4, COCO 2017 train to val, 2x",
        base="coco_R50_C4_1x",
        keys={"SOLVER": _2X},
        iterations=180000,
        seconds=0.584,
        like=_C4,
        tables=("moco_v1.table5d", "repro.openselfsup.coco_c4_2x"),
    ),
    "coco_R50_C4_6x": Stem(
        "Mask R-CNN R50-C4, COCO 2017 train to val, 6x",
        base="coco_R50_C4_1x",
        keys={"SOLVER": _6X},
        iterations=540000,
        seconds=0.584,
        like=_C4,
        note=_SIX,
    ),
    "coco_keypoint_R50_FPN_2x": Stem(
        "Keypoint R-CNN R50-FPN, COCO 2017 persons train to val, 2x",
        base="RCNN_FPN",
        keys={
            "MODEL": {
                "KEYPOINT_ON": True,
                "RPN": {"POST_NMS_TOPK_TRAIN": 1500},
                "ROI_HEADS": {"NUM_CLASSES": 1},
                "ROI_BOX_HEAD": {"SMOOTH_L1_BETA": 0.5},
            },
            "INPUT": {"MIN_SIZE_TRAIN": COCO_SIZES, "MIN_SIZE_TEST": 800},
            "DATASETS": {
                "TRAIN": ["keypoints_coco_2017_train"],
                "TEST": ["keypoints_coco_2017_val"],
            },
            "SOLVER": {**_COCO_SOLVER, **_2X},
            "TEST": {"EVALUATOR": "detectron2"},
        },
        iterations=180000,
        seconds=0.315,
        like="Keypoint R-CNN R50-FPN",
        tables=("moco_v1.table6.coco_keypoint",),
        arms=DETECTRON2_ARMS,
        note="for detectron2 alone",
    ),
    "lvis_R50_FPN_2x": Stem(
        "Mask R-CNN R50-FPN, LVIS v0.5 train to val, 2x",
        base="RCNN_FPN",
        keys={
            "MODEL": {
                "MASK_ON": True,
                "ROI_HEADS": {"NUM_CLASSES": 1230, "SCORE_THRESH_TEST": 0.0001},
            },
            "INPUT": {"MIN_SIZE_TRAIN": COCO_SIZES, "MIN_SIZE_TEST": 800},
            "DATASETS": {"TRAIN": ["lvis_v0.5_train"], "TEST": ["lvis_v0.5_val"]},
            "DATALOADER": {
                "SAMPLER_TRAIN": "RepeatFactorTrainingSampler",
                "REPEAT_THRESHOLD": 0.001,
            },
            "SOLVER": {**_COCO_SOLVER, **_2X},
            "TEST": {"DETECTIONS_PER_IMAGE": 300, "EVALUATOR": "detectron2"},
        },
        iterations=180000,
        seconds=0.292,
        like="Mask R-CNN R50-FPN on LVIS v0.5",
        tables=("moco_v1.appendix_lvis_bn", "moco_v1.table6.lvis"),
        arms=DETECTRON2_ARMS,
        note="for detectron2 alone; the supervised row of the paper's Table 6 has its BN frozen, "
        "that of its appendix A.4 tunes it as every arm does here",
    ),
    "cityscapes_R50_FPN_24k": Stem(
        "Mask R-CNN R50-FPN, Cityscapes instances train to val, 24k iterations",
        base="RCNN_FPN",
        keys={
            "MODEL": {"MASK_ON": True, "ROI_HEADS": {"NUM_CLASSES": 8}},
            "INPUT": {
                "MIN_SIZE_TRAIN": [800, 832, 864, 896, 928, 960, 992, 1024],
                "MAX_SIZE_TRAIN": 2048,
                "MIN_SIZE_TEST": 1024,
                "MAX_SIZE_TEST": 2048,
            },
            "DATASETS": {
                "TRAIN": ["cityscapes_fine_instance_seg_train"],
                "TEST": ["cityscapes_fine_instance_seg_val"],
            },
            "SOLVER": {
                "IMS_PER_BATCH": 8,
                "BASE_LR": 0.01,
                "MAX_ITER": 24000,
                "STEPS": [18000],
            },
            "TEST": {"EVAL_PERIOD": 8000, "EVALUATOR": "detectron2"},
        },
        iterations=24000,
        seconds=0.240,
        like="Mask R-CNN R50-FPN on Cityscapes",
        tables=("moco_v1.table6.cityscapes_inst",),
        arms=DETECTRON2_ARMS,
        note="for detectron2 alone; the paper does not describe its detector and schedule, these "
        "are detectron2's",
    ),
}
