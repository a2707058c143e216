"""The one place where a config becomes parts: everything below takes named arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from fvcore.common.config import CfgNode

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import BLOCKS, Architecture
from moco_det.resnet.network import ResNet, make_stage
from moco_det.standalone.anchors import AnchorGenerator
from moco_det.standalone.boxes import BoxCoder, Matcher
from moco_det.standalone.detector import Backbone, GeneralizedRCNN
from moco_det.standalone.dilated_c5 import DilatedC5
from moco_det.standalone.fpn import FPN
from moco_det.standalone.mapper import Mapper
from moco_det.standalone.roi_heads import Res5ROIHeads, ROIHeads, Sampler, StandardROIHeads
from moco_det.standalone.roi_layers import BoxHead, BoxPredictor, MaskHead, ROIPooler
from moco_det.standalone.rpn import RPN, RPNHead
from moco_det.standalone.solver import Schedule, Solver, parameter_groups


def build_detector(cfg: CfgNode) -> GeneralizedRCNN:
    """The detector a config describes, randomly initialised, on the CPU, channels last.

    That memory layout is the faster one on CPUs and GPUs, in every precision.
    """
    try:
        backbone = build_backbone(cfg)
        model = GeneralizedRCNN(
            backbone=backbone,
            proposal_generator=build_rpn(cfg, backbone),
            roi_heads=build_roi_heads(cfg, backbone),
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
        )
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    except (ValueError, KeyError) as error:
        raise InputError(f"the config describes no detector: {error}") from error


def build_backbone(cfg: CfgNode) -> Backbone:
    return BACKBONES[cfg.MODEL.BACKBONE.NAME](cfg)


def build_resnet(cfg: CfgNode) -> ResNet:
    resnets = cfg.MODEL.RESNETS
    return ResNet(
        architecture(cfg),
        norm=resnets.NORM,
        out_features=resnets.OUT_FEATURES,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        res5_dilation=resnets.RES5_DILATION,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def architecture(cfg: CfgNode) -> Architecture:
    resnets = cfg.MODEL.RESNETS
    return Architecture(
        BLOCKS[resnets.DEPTH],
        resnets.DEPTH >= 50,
        num_groups=resnets.NUM_GROUPS,
        width_per_group=resnets.WIDTH_PER_GROUP,
        stem_out_channels=resnets.STEM_OUT_CHANNELS,
        res2_out_channels=resnets.RES2_OUT_CHANNELS,
    )


def build_fpn(cfg: CfgNode) -> FPN:
    return FPN(
        build_resnet(cfg),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_dilated_c5(cfg: CfgNode) -> DilatedC5:
    return DilatedC5(
        build_resnet(cfg),
        out_channels=cfg.MODEL.DILATED_C5.OUT_CHANNELS,
        norm=cfg.MODEL.DILATED_C5.NORM,
    )


BACKBONES: dict[str, Callable[[CfgNode], Backbone]] = {
    "build_resnet_backbone": build_resnet,
    "build_resnet_fpn_backbone": build_fpn,
    "build_resnet_dilated_c5_backbone": build_dilated_c5,
}


def build_rpn(cfg: CfgNode, backbone: Backbone) -> RPN:
    rpn = cfg.MODEL.RPN
    anchors = AnchorGenerator(
        sizes=cfg.MODEL.ANCHOR_GENERATOR.SIZES,
        aspect_ratios=cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS,
        strides=[backbone.strides[name] for name in rpn.IN_FEATURES],
        offset=cfg.MODEL.ANCHOR_GENERATOR.OFFSET,
    )
    if len(set(anchors.per_cell)) != 1:
        raise ValueError("MODEL.ANCHOR_GENERATOR needs as many anchors a cell on every level")
    head = RPNHead(
        in_channels=backbone.channels[rpn.IN_FEATURES[0]], num_anchors=anchors.per_cell[0]
    )
    return RPN(
        in_features=rpn.IN_FEATURES,
        head=head,
        anchors=anchors,
        matcher=Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality=True),
        coder=BoxCoder(tuple(rpn.BBOX_REG_WEIGHTS)),
        batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
        positive_fraction=rpn.POSITIVE_FRACTION,
        pre_nms_topk=(rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
        post_nms_topk=(rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
        nms_threshold=rpn.NMS_THRESH,
        min_box_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        loss_weight=rpn.LOSS_WEIGHT,
        box_loss_weight=rpn.BBOX_REG_LOSS_WEIGHT,
        smooth_l1_beta=rpn.SMOOTH_L1_BETA,
    )


def build_roi_heads(cfg: CfgNode, backbone: Backbone) -> ROIHeads:
    return ROI_HEADS[cfg.MODEL.ROI_HEADS.NAME](cfg, backbone)


def build_sampler(cfg: CfgNode) -> Sampler:
    heads = cfg.MODEL.ROI_HEADS
    return Sampler(
        num_classes=heads.NUM_CLASSES,
        matcher=Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality=False),
        batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
        positive_fraction=heads.POSITIVE_FRACTION,
        append_ground_truth=heads.PROPOSAL_APPEND_GT,
    )


def build_pooler(node: CfgNode, strides: Sequence[int]) -> ROIPooler:
    return ROIPooler(
        output_size=node.POOLER_RESOLUTION,
        strides=strides,
        sampling_ratio=node.POOLER_SAMPLING_RATIO,
        aligned=node.POOLER_TYPE == "ROIAlignV2",
    )


def build_predictor(cfg: CfgNode, in_features: int) -> BoxPredictor:
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    return BoxPredictor(
        in_features=in_features,
        num_classes=heads.NUM_CLASSES,
        class_agnostic=box.CLS_AGNOSTIC_BBOX_REG,
        coder=BoxCoder(tuple(box.BBOX_REG_WEIGHTS)),
        box_loss_weight=box.BBOX_REG_LOSS_WEIGHT,
        smooth_l1_beta=box.SMOOTH_L1_BETA,
        score_threshold=heads.SCORE_THRESH_TEST,
        nms_threshold=heads.NMS_THRESH_TEST,
        detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
    )


def build_mask_head(cfg: CfgNode, in_channels: int) -> MaskHead | None:
    if not cfg.MODEL.MASK_ON:
        return None
    mask = cfg.MODEL.ROI_MASK_HEAD
    return MaskHead(
        in_channels=in_channels,
        num_conv=mask.NUM_CONV,
        conv_dim=mask.CONV_DIM,
        norm=mask.NORM,
        num_masks=1 if mask.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
    )


def build_standard_heads(cfg: CfgNode, backbone: Backbone) -> StandardROIHeads:
    box, mask = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
    channels = backbone.channels[in_features[0]]
    strides = [backbone.strides[name] for name in in_features]
    box_head = BoxHead(
        in_channels=channels,
        resolution=box.POOLER_RESOLUTION,
        num_conv=box.NUM_CONV,
        conv_dim=box.CONV_DIM,
        num_fc=box.NUM_FC,
        fc_dim=box.FC_DIM,
        norm=box.NORM,
    )
    return StandardROIHeads(
        in_features=in_features,
        sampler=build_sampler(cfg),
        box_pooler=build_pooler(box, strides),
        box_head=box_head,
        box_predictor=build_predictor(cfg, box_head.out_features),
        mask_pooler=build_pooler(mask, strides) if cfg.MODEL.MASK_ON else None,
        mask_head=build_mask_head(cfg, channels),
    )


def build_res5_heads(
    cfg: CfgNode, backbone: Backbone, extra_norm: str | None = None
) -> Res5ROIHeads:
    in_features, resnets = cfg.MODEL.ROI_HEADS.IN_FEATURES, cfg.MODEL.RESNETS
    shape = architecture(cfg)
    channels = shape.res2_out_channels * 8
    return Res5ROIHeads(
        in_features=in_features,
        sampler=build_sampler(cfg),
        pooler=build_pooler(
            cfg.MODEL.ROI_BOX_HEAD, [backbone.strides[name] for name in in_features]
        ),
        res5=make_stage("res5", shape, norm=resnets.NORM, stride_in_1x1=resnets.STRIDE_IN_1X1),
        extra_norm=extra_norm,
        box_predictor=build_predictor(cfg, channels),
        mask_head=build_mask_head(cfg, channels),
    )


def build_res5_heads_extra_norm(cfg: CfgNode, backbone: Backbone) -> Res5ROIHeads:
    return build_res5_heads(cfg, backbone, extra_norm=cfg.MODEL.RESNETS.NORM)


ROI_HEADS: dict[str, Callable[[CfgNode, Backbone], ROIHeads]] = {
    "StandardROIHeads": build_standard_heads,
    "Res5ROIHeads": build_res5_heads,
    "Res5ROIHeadsExtraNorm": build_res5_heads_extra_norm,
}


def build_mapper(cfg: CfgNode, *, train: bool) -> Mapper:
    """The transform of one image for training or for testing."""
    return Mapper(
        train=train,
        min_sizes=cfg.INPUT.MIN_SIZE_TRAIN if train else [cfg.INPUT.MIN_SIZE_TEST],
        max_size=cfg.INPUT.MAX_SIZE_TRAIN if train else cfg.INPUT.MAX_SIZE_TEST,
        sampling=cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING,
        flip=cfg.INPUT.RANDOM_FLIP,
        image_format=cfg.INPUT.FORMAT,
        with_masks=cfg.MODEL.MASK_ON,
        mask_format=cfg.INPUT.MASK_FORMAT,
    )


def build_schedule(cfg: CfgNode) -> Schedule:
    """The factor of the base learning rate at every iteration."""
    solver = cfg.SOLVER
    return Schedule(
        name=solver.LR_SCHEDULER_NAME,
        max_iter=solver.MAX_ITER,
        steps=[step for step in solver.STEPS if step <= solver.MAX_ITER],
        gamma=solver.GAMMA,
        end_factor=solver.BASE_LR_END / solver.BASE_LR,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_method=solver.WARMUP_METHOD,
    )


def build_solver(cfg: CfgNode, model: torch.nn.Module) -> Solver:
    """SGD over the model's trainable parameters."""
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
    )
    # one kernel for all parameters on a GPU; on a CPU one after another stays in the cache
    fused = next(model.parameters()).is_cuda
    optimizer = torch.optim.SGD(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        fused=fused,
        foreach=False,
    )
    if fused and solver.MOMENTUM:
        # torch leaves these as they come from the allocator where the first step of all is one
        # that loss scaling skips, and the second then adds what was in that memory
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return Solver(optimizer, build_schedule(cfg))
