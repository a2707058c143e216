"""The tables of the matrix: per table one file in configs/base, shared by all of its arms.

Hyper-parameters there are those of the MoCo papers (v1, section 4.2 and appendix A; released code,
detection/configs) and, where these follow detectron2's baselines, of detectron2's configs (COCO:
batch 16, learning rate 0.02, steps at 60k and 80k of 90k iterations; 6x as 3x and 9x have them).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moco_det.settings.zoo.arms import ARMS, TIMM_ARMS, Initialisation

C4_VOC, DC5 = "Faster R-CNN R50-C4 on VOC", "Faster R-CNN R50-DC5 on COCO"
FPN, C4 = "Mask R-CNN R50-FPN", "Mask R-CNN R50-C4"
# seconds per iteration on 8 V100s with frozen BN, of models of detectron2's zoo
SECONDS = {
    C4_VOC: 0.537,
    DC5: 0.380,
    FPN: 0.261,
    C4: 0.584,
    "Keypoint R-CNN R50-FPN": 0.315,
    "Mask R-CNN R50-FPN on LVIS v0.5": 0.292,
    "Mask R-CNN R50-FPN on Cityscapes": 0.240,
}
DETECTRON2_ARMS = {name: ARMS[name] for name in ("random", "sup", "sup_msra", "moco", "moco_ig1b")}
CONVNEXT, SWIN = TIMM_ARMS["convnext_tiny"], TIMM_ARMS["swin_tiny_patch4_window7_224"]


@dataclass(frozen=True)
class ConfigStem:
    """One table, which costs as the model of detectron2's zoo that it is `like`.

    `tables` are published tables with rows of this setting, the papers' own first; `initial` has
    its arms. `note` is what a reader must know of the setting or of its published numbers.
    """

    what: str
    like: str = ""
    tables: tuple[str, ...] = ()
    initial: Mapping[str, Initialisation] = field(default_factory=lambda: ARMS)
    note: str = ""


SIX = "6x is six times the iterations of 1x, its steps 60k and 20k before the end"

STEMS: dict[str, ConfigStem] = {
    "voc_R50_C4_24k": ConfigStem(
        "Faster R-CNN R50-C4, VOC 07+12 trainval to 07 test, 24k iterations",
        C4_VOC,
        tables=("moco_v1.table2b", "moco_v1.table3b", "moco_v2.table1", "repro.openselfsup.voc"),
    ),
    "voc_R50_DC5_24k": ConfigStem(
        "Faster R-CNN R50-dilated-C5, VOC 07+12 trainval to 07 test, 24k iterations",
        DC5,
        tables=("moco_v1.table2a", "moco_v1.table3a"),
    ),
    "voc07_R50_C4_9k": ConfigStem(
        "Faster R-CNN R50-C4, VOC 07 trainval to 07 test, 9k iterations",
        C4_VOC,
        tables=("moco_v1.table4",),
        note="no source states the steps of 9k: they stand where those of 24k do, at 3/4 and 11/12",
    ),
    "coco_R50_FPN_1x": ConfigStem(
        "Mask R-CNN R50-FPN, COCO 2017 train to val, 1x", FPN, tables=("moco_v1.table5a",)
    ),
    "coco_R50_FPN_2x": ConfigStem(
        "Mask R-CNN R50-FPN, COCO 2017 train to val, 2x", FPN, tables=("moco_v1.table5b",)
    ),
    "coco_R50_FPN_6x": ConfigStem(
        "Mask R-CNN R50-FPN, COCO 2017 train to val, 6x",
        FPN,
        tables=("moco_v1.tableA1b",),
        note=SIX,
    ),
    "coco_R50_C4_1x": ConfigStem(
        "Mask R-CNN R50-C4, COCO 2017 train to val, 1x", C4, tables=("moco_v1.table5c",)
    ),
    "coco_R50_C4_2x": ConfigStem(
        "Mask R-CNN R50-C4, COCO 2017 train to val, 2x",
        C4,
        tables=("moco_v1.table5d", "repro.openselfsup.coco_c4_2x"),
    ),
    "coco_R50_C4_6x": ConfigStem(
        "Mask R-CNN R50-C4, COCO 2017 train to val, 6x",
        C4,
        initial={name: arm for name, arm in ARMS.items() if name != "moco_ig1b"},  # no row
        note=SIX,
    ),
    "coco_keypoint_R50_FPN_2x": ConfigStem(
        "Keypoint R-CNN R50-FPN, COCO 2017 persons train to val, 2x",
        "Keypoint R-CNN R50-FPN",
        tables=("moco_v1.table6.coco_keypoint",),
        initial=DETECTRON2_ARMS,
        note="for detectron2 alone",
    ),
    "lvis_R50_FPN_2x": ConfigStem(
        "Mask R-CNN R50-FPN, LVIS v0.5 train to val, 2x",
        "Mask R-CNN R50-FPN on LVIS v0.5",
        tables=("moco_v1.appendix_lvis_bn", "moco_v1.table6.lvis"),
        initial=DETECTRON2_ARMS,
        note="for detectron2 alone; the supervised row of the paper's Table 6 has its BN frozen, "
        "that of its appendix A.4 tunes it as every arm does here",
    ),
    "cityscapes_R50_FPN_24k": ConfigStem(
        "Mask R-CNN R50-FPN, Cityscapes instances train to val, 24k iterations",
        "Mask R-CNN R50-FPN on Cityscapes",
        tables=("moco_v1.table6.cityscapes_inst",),
        initial=DETECTRON2_ARMS,
        note="for detectron2 alone; the paper does not describe its detector and schedule, these "
        "are detectron2's",
    ),
    "coco_swin_tiny_FPN_1x": ConfigStem(
        "Mask R-CNN with timm's Swin-T below an FPN, COCO 2017 train to val, 1x",
        tables=("moby.swin_tiny",),
        initial=SWIN,
        note="AdamW, its rate and decay, drop path and sizes as Swin's authors have them; timm's "
        "stages have no norm of their own before the pyramid, theirs have",
    ),
    "coco_convnext_tiny_FPN_1x": ConfigStem(
        "Mask R-CNN with timm's ConvNeXt-T below an FPN, COCO 2017 train to val, 1x",
        initial=CONVNEXT,
        note="as coco_swin_tiny_FPN_1x; ConvNeXt's authors fine-tune at 3x",
    ),
    "voc_convnext_tiny_FPN_24k": ConfigStem(
        "Faster R-CNN with timm's ConvNeXt-T below an FPN, VOC 07+12 trainval to 07 test, 24k "
        "iterations",
        initial=CONVNEXT,
        note="this project's own setting: the schedule of voc_R50_C4_24k, the rest as "
        "coco_convnext_tiny_FPN_1x",
    ),
    "coco_vit_small_1x": ConfigStem(
        "Mask R-CNN with timm's ViT-S below ViTDet's pyramid, COCO 2017 train to val, 1x",
        initial=TIMM_ARMS["vit_small_patch16_224"],
        note="as coco_swin_tiny_FPN_1x, with ViTDet's windows, drop path and layer decay for "
        "ViT-B; its heads, its augmentation and its 100 epochs are others",
    ),
    "coco_vit_small_dinov3_1x": ConfigStem(
        "Mask R-CNN with DINOv3's ViT-S below ViTDet's pyramid, COCO 2017 train to val, 1x",
        initial=TIMM_ARMS["vit_small_patch16_dinov3"],
        note="as coco_vit_small_1x",
    ),
}
