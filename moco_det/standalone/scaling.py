"""A config made for some number of processes, run on another number (SOLVER.REFERENCE_WORLD_SIZE).

The linear rule of Goyal et al. 2017, section 2.1, with detectron2's rounding: with k times as many
processes the batch and the learning rate are k times as large and everything counted in iterations
is k times as short, so that a process always has as many images as the config's author gave it.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode


def scale_to_processes(cfg: CfgNode, processes: int) -> CfgNode:
    """The config that runs; the same one where nothing is asked for or the number is the same."""
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, processes):
        return cfg
    scale = processes / reference
    scaled = cfg.clone()
    scaled.defrost()
    solver, old = scaled.SOLVER, cfg.SOLVER
    solver.IMS_PER_BATCH = round(old.IMS_PER_BATCH * scale)
    solver.BASE_LR = old.BASE_LR * scale
    solver.MAX_ITER = round(old.MAX_ITER / scale)
    solver.WARMUP_ITERS = round(old.WARMUP_ITERS / scale)
    solver.STEPS = tuple(round(step / scale) for step in old.STEPS)
    solver.CHECKPOINT_PERIOD = max(1, round(old.CHECKPOINT_PERIOD / scale))
    scaled.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
    solver.REFERENCE_WORLD_SIZE = processes
    scaled.freeze()
    return scaled


def scaling_line(cfg: CfgNode, scaled: CfgNode) -> str:
    """What was changed, for the log."""
    old, new = cfg.SOLVER, scaled.SOLVER
    return (
        f"SOLVER.REFERENCE_WORLD_SIZE {old.REFERENCE_WORLD_SIZE}, here "
        f"{new.REFERENCE_WORLD_SIZE} process(es): IMS_PER_BATCH {old.IMS_PER_BATCH} becomes "
        f"{new.IMS_PER_BATCH}, BASE_LR {old.BASE_LR:g} {new.BASE_LR:g}, MAX_ITER {old.MAX_ITER} "
        f"{new.MAX_ITER}, STEPS {tuple(old.STEPS)} {tuple(new.STEPS)}, WARMUP_ITERS "
        f"{old.WARMUP_ITERS} {new.WARMUP_ITERS}"
    )


def small_norm_groups(cfg: CfgNode, processes: int, timm_norm: str | None = None) -> list[str]:
    """A warning where a trained BN layer normalises over a single image, else nothing.

    SyncBN sees the whole batch, BN the images of its own process. `timm_norm` is the norm of a timm
    network, None where there is a ResNet.
    """
    norms = {"MODEL.RESNETS.NORM": cfg.MODEL.RESNETS.NORM}
    if timm_norm is not None:
        norms = {"MODEL.TIMM.NORM": timm_norm}
    if cfg.MODEL.BACKBONE.NAME.endswith("_fpn_backbone"):
        norms["MODEL.FPN.NORM"] = cfg.MODEL.FPN.NORM
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_dilated_c5_backbone":
        norms["MODEL.DILATED_C5.NORM"] = cfg.MODEL.DILATED_C5.NORM
    group = {
        "BN": cfg.SOLVER.IMS_PER_BATCH // processes,
        "SyncBN": cfg.SOLVER.IMS_PER_BATCH,
    }
    small = {key: norm for key, norm in norms.items() if group.get(norm, 2) < 2}
    return [
        f"{key} {norm} normalises over 1 image: its statistics are those of that image alone; "
        "raise SOLVER.IMS_PER_BATCH, take SyncBN over several processes, or FrozenBN"
        for key, norm in small.items()
    ]
