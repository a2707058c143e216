"""Whether the memory of a machine can hold the detector and the batch that a config describes."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from moco_det.foundation.memory import check_fits, check_workers, on_meta
from moco_det.foundation.strict_yaml import flatten
from moco_det.settings.config import get_cfg

# Widths and counts that the parameters grow with.
WIDTHS = (
    *("MODEL.FPN.OUT_CHANNELS", "MODEL.DILATED_C5.OUT_CHANNELS", "MODEL.ROI_HEADS.NUM_CLASSES"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "MODEL.RESNETS.RES2_OUT_CHANNELS"),
    *("MODEL.RESNETS.NUM_GROUPS", "MODEL.RESNETS.WIDTH_PER_GROUP"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "MODEL.ROI_BOX_HEAD.CONV_DIM", "MODEL.ROI_MASK_HEAD.CONV_DIM"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"),
)


def check_memory(cfg: CfgNode, processes: int) -> None:
    """InputError where weights, gradients, momenta and images are more than the device has.

    The layers are counted as the standalone engine builds them, which are detectron2's; a backbone
    that it does not know is not counted.
    """
    from moco_det.standalone.build import BACKBONES, ROI_HEADS, build_detector

    check_workers("DATALOADER.NUM_WORKERS", cfg.DATALOADER.NUM_WORKERS)
    if cfg.MODEL.BACKBONE.NAME not in BACKBONES or cfg.MODEL.ROI_HEADS.NAME not in ROI_HEADS:
        return
    flat, usual = flatten(cfg), flatten(get_cfg())
    widest = max(WIDTHS, key=lambda key: flat[key] // max(1, usual[key]))
    model = on_meta(lambda: build_detector(cfg), f"MODEL's widths, {widest} {flat[widest]} first,")
    weights = sum(p.nbytes for p in model.parameters())
    side = min(max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN)
    # as bytes from the loader, then as float32
    images = 5 * 3 * side**2 * cfg.SOLVER.IMS_PER_BATCH // processes
    needs = {
        f"MODEL's layers ({widest} is {flat[widest]})": weights
        * (4 if cfg.SOLVER.OPTIMIZER == "AdamW" else 3),
        f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} of INPUT.MIN_SIZE_TRAIN "
        f"{max(cfg.INPUT.MIN_SIZE_TRAIN)}": images,
    }
    check_fits(needs, cfg.MODEL.DEVICE)
