"""The one place where a config becomes parts: everything below takes named arguments."""

from __future__ import annotations

import torch
from fvcore.common.config import CfgNode

from moco_det.errors import InputError
from moco_det.resnet import Architecture, ResNet
from moco_det.standalone.anchors import AnchorGenerator
from moco_det.standalone.boxes import BoxCoder, Matcher
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.fpn import FPN
from moco_det.standalone.mapper import Mapper
from moco_det.standalone.roi_heads import (
    BoxHead,
    BoxPredictor,
    MaskHead,
    ROIPooler,
    StandardROIHeads,
)
from moco_det.standalone.rpn import RPN, RPNHead
from moco_det.standalone.solver import Schedule, Solver, parameter_groups


def build_detector(cfg: CfgNode, *, channels_last: bool = False) -> GeneralizedRCNN:
    """The detector a config describes, randomly initialised, on the CPU."""
    try:
        backbone = build_backbone(cfg)
        return GeneralizedRCNN(
            backbone=backbone,
            proposal_generator=build_rpn(cfg, backbone),
            roi_heads=build_roi_heads(cfg, backbone),
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
            channels_last=channels_last,
        )
    except (ValueError, KeyError) as error:
        raise InputError(f"the config describes no detector: {error}") from error


def build_backbone(cfg: CfgNode) -> FPN:
    resnets = cfg.MODEL.RESNETS
    bottom_up = ResNet(
        Architecture(
            resnets.DEPTH,
            num_groups=resnets.NUM_GROUPS,
            width_per_group=resnets.WIDTH_PER_GROUP,
            stem_out_channels=resnets.STEM_OUT_CHANNELS,
            res2_out_channels=resnets.RES2_OUT_CHANNELS,
        ),
        norm=resnets.NORM,
        out_features=resnets.OUT_FEATURES,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    return FPN(
        bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_rpn(cfg: CfgNode, backbone: FPN) -> RPN:
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


def build_roi_heads(cfg: CfgNode, backbone: FPN) -> StandardROIHeads:
    heads, box, mask = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    channels = backbone.channels[heads.IN_FEATURES[0]]
    strides = [backbone.strides[name] for name in heads.IN_FEATURES]
    box_head = BoxHead(
        in_channels=channels,
        resolution=box.POOLER_RESOLUTION,
        num_conv=box.NUM_CONV,
        conv_dim=box.CONV_DIM,
        num_fc=box.NUM_FC,
        fc_dim=box.FC_DIM,
        norm=box.NORM,
    )
    mask_head = mask_pooler = None
    if cfg.MODEL.MASK_ON:
        mask_head = MaskHead(
            in_channels=channels,
            num_conv=mask.NUM_CONV,
            conv_dim=mask.CONV_DIM,
            norm=mask.NORM,
            num_masks=1 if mask.CLS_AGNOSTIC_MASK else heads.NUM_CLASSES,
        )
        mask_pooler = ROIPooler(
            output_size=mask.POOLER_RESOLUTION,
            strides=strides,
            sampling_ratio=mask.POOLER_SAMPLING_RATIO,
            aligned=mask.POOLER_TYPE == "ROIAlignV2",
        )
    return StandardROIHeads(
        in_features=heads.IN_FEATURES,
        num_classes=heads.NUM_CLASSES,
        batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
        positive_fraction=heads.POSITIVE_FRACTION,
        append_ground_truth=heads.PROPOSAL_APPEND_GT,
        matcher=Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality=False),
        box_pooler=ROIPooler(
            output_size=box.POOLER_RESOLUTION,
            strides=strides,
            sampling_ratio=box.POOLER_SAMPLING_RATIO,
            aligned=box.POOLER_TYPE == "ROIAlignV2",
        ),
        box_head=box_head,
        box_predictor=BoxPredictor(
            in_features=box_head.out_features,
            num_classes=heads.NUM_CLASSES,
            class_agnostic=box.CLS_AGNOSTIC_BBOX_REG,
            coder=BoxCoder(tuple(box.BBOX_REG_WEIGHTS)),
            box_loss_weight=box.BBOX_REG_LOSS_WEIGHT,
            smooth_l1_beta=box.SMOOTH_L1_BETA,
            score_threshold=heads.SCORE_THRESH_TEST,
            nms_threshold=heads.NMS_THRESH_TEST,
            detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        ),
        mask_pooler=mask_pooler,
        mask_head=mask_head,
    )


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
    optimizer = torch.optim.SGD(
        groups,
        lr=solver.BASE_LR,
        momentum=solver.MOMENTUM,
        nesterov=solver.NESTEROV,
        foreach=True,
    )
    return Solver(optimizer, build_schedule(cfg))
