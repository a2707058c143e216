"""The one place where a config becomes parts: everything below takes named arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from fvcore.common.config import CfgNode

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import BLOCKS, Architecture
from moco_det.resnet.layers import make_norm
from moco_det.resnet.network import ResNet, make_stage
from moco_det.settings.optimizers import build_optimizer
from moco_det.standalone.anchors import AnchorGenerator
from moco_det.standalone.backbones import FPN, BottomUp, DilatedC5
from moco_det.standalone.boxes import BoxCoder, Matcher
from moco_det.standalone.detector import Backbone, GeneralizedRCNN
from moco_det.standalone.mapper import Mapper
from moco_det.standalone.roi_align import ROIPooler
from moco_det.standalone.roi_heads import RegionSampler, ROIHeads
from moco_det.standalone.roi_layers import BoxHead, BoxPredictor, MaskHead
from moco_det.standalone.rpn import RPN, RPNHead
from moco_det.standalone.solver import LearningRate, Solver
from moco_det.timm_backbones.network import TimmBackbone
from moco_det.timm_backbones.simple_pyramid import SimplePyramid


def build_detector(cfg: CfgNode) -> GeneralizedRCNN:
    """The detector a config describes, randomly initialised, on the CPU, channels last.

    That memory layout is the faster one on CPUs and GPUs, in every precision.
    """
    try:
        backbone = BACKBONES[cfg.MODEL.BACKBONE.NAME](cfg)
        check_features(cfg, backbone)
        model = GeneralizedRCNN(
            backbone=backbone,
            proposal_generator=build_rpn(cfg, backbone),
            roi_heads=ROI_HEADS[cfg.MODEL.ROI_HEADS.NAME](cfg, backbone),
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
        )
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    except (ValueError, KeyError) as error:
        raise InputError(f"the config describes no detector: {error}") from error


def check_features(cfg: CfgNode, backbone: Backbone) -> None:
    """InputError for features that a head asks for and the backbone does not have."""
    for part in ("RPN", "ROI_HEADS"):
        asked = cfg.MODEL[part].IN_FEATURES
        lacking = [name for name in asked if name not in backbone.strides]
        if lacking:
            raise InputError(
                f"MODEL.{part}.IN_FEATURES {list(asked)}: the backbone has no {lacking[0]} but "
                f"{', '.join(backbone.strides)}"
            )


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


def build_timm(cfg: CfgNode) -> FPN | SimplePyramid:
    timm = cfg.MODEL.TIMM
    network = TimmBackbone(
        timm.NAME,
        drop_path=timm.DROP_PATH,
        norm=timm.NORM,
        window=timm.WINDOW,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
    if network.plain:
        pyramid = cfg.MODEL.FPN
        return SimplePyramid(network, out_channels=pyramid.OUT_CHANNELS, norm=pyramid.NORM)
    return build_fpn(cfg, network)


def build_fpn(cfg: CfgNode, bottom_up: BottomUp) -> FPN:
    return FPN(
        bottom_up,
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
    "build_resnet_fpn_backbone": lambda cfg: build_fpn(cfg, build_resnet(cfg)),
    "build_timm_fpn_backbone": build_timm,
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
        raise ValueError("MODEL.ANCHOR_GENERATOR needs as many anchors per cell on every level")
    channels = backbone.channels[rpn.IN_FEATURES[0]]
    return RPN(
        in_features=rpn.IN_FEATURES,
        head=RPNHead(in_channels=channels, num_anchors=anchors.per_cell[0]),
        anchors=anchors,
        matcher=Matcher(rpn.IOU_THRESHOLDS, rpn.IOU_LABELS, allow_low_quality=True),
        coder=BoxCoder(tuple(rpn.BBOX_REG_WEIGHTS), rpn.SMOOTH_L1_BETA),
        batch_size_per_image=rpn.BATCH_SIZE_PER_IMAGE,
        positive_fraction=rpn.POSITIVE_FRACTION,
        pre_nms_topk=(rpn.PRE_NMS_TOPK_TRAIN, rpn.PRE_NMS_TOPK_TEST),
        post_nms_topk=(rpn.POST_NMS_TOPK_TRAIN, rpn.POST_NMS_TOPK_TEST),
        nms_threshold=rpn.NMS_THRESH,
        min_box_size=cfg.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        loss_weight=rpn.LOSS_WEIGHT,
        box_loss_weight=rpn.BBOX_REG_LOSS_WEIGHT,
    )


def build_sampler(cfg: CfgNode) -> RegionSampler:
    heads = cfg.MODEL.ROI_HEADS
    return RegionSampler(
        num_classes=heads.NUM_CLASSES,
        matcher=Matcher(heads.IOU_THRESHOLDS, heads.IOU_LABELS, allow_low_quality=False),
        batch_size_per_image=heads.BATCH_SIZE_PER_IMAGE,
        positive_fraction=heads.POSITIVE_FRACTION,
        append_ground_truth=heads.PROPOSAL_APPEND_GT,
    )


def build_pooler(cfg: CfgNode, node: CfgNode, backbone: Backbone) -> ROIPooler:
    return ROIPooler(
        output_size=node.POOLER_RESOLUTION,
        strides=tuple(backbone.strides[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES),
        sampling_ratio=node.POOLER_SAMPLING_RATIO,
        aligned=node.POOLER_TYPE == "ROIAlignV2",
    )


def build_predictor(cfg: CfgNode, in_features: int) -> BoxPredictor:
    heads, box = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_BOX_HEAD
    return BoxPredictor(
        in_features=in_features,
        num_classes=heads.NUM_CLASSES,
        class_agnostic=box.CLS_AGNOSTIC_BBOX_REG,
        coder=BoxCoder(tuple(box.BBOX_REG_WEIGHTS), box.SMOOTH_L1_BETA),
        box_loss_weight=box.BBOX_REG_LOSS_WEIGHT,
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


def build_standard_heads(cfg: CfgNode, backbone: Backbone) -> ROIHeads:
    box, mask = cfg.MODEL.ROI_BOX_HEAD, cfg.MODEL.ROI_MASK_HEAD
    in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
    channels = backbone.channels[in_features[0]]
    box_head = BoxHead(
        in_channels=channels,
        resolution=box.POOLER_RESOLUTION,
        num_conv=box.NUM_CONV,
        conv_dim=box.CONV_DIM,
        num_fc=box.NUM_FC,
        fc_dim=box.FC_DIM,
        norm=box.NORM,
    )
    return ROIHeads(
        in_features=in_features,
        sampler=build_sampler(cfg),
        pooler=build_pooler(cfg, box, backbone),
        box_head=box_head,
        box_predictor=build_predictor(cfg, box_head.out_features),
        mask_pooler=build_pooler(cfg, mask, backbone) if cfg.MODEL.MASK_ON else None,
        mask_head=build_mask_head(cfg, channels),
    )


def build_res5_heads(cfg: CfgNode, backbone: Backbone, *, extra_norm: bool = False) -> ROIHeads:
    resnets, shape = cfg.MODEL.RESNETS, architecture(cfg)
    res5 = make_stage("res5", shape, norm=resnets.NORM, stride_in_1x1=resnets.STRIDE_IN_1X1)
    channels = shape.res2_out_channels * 8
    if extra_norm:
        layer = make_norm(resnets.NORM, channels)
        if layer is None:
            raise ValueError("Res5ROIHeadsExtraNorm needs MODEL.RESNETS.NORM to be a norm")
        res5.add_module("norm", layer)
    return ROIHeads(
        in_features=cfg.MODEL.ROI_HEADS.IN_FEATURES,
        sampler=build_sampler(cfg),
        pooler=build_pooler(cfg, cfg.MODEL.ROI_BOX_HEAD, backbone),
        res5=res5,
        box_predictor=build_predictor(cfg, channels),
        mask_head=build_mask_head(cfg, channels),
    )


ROI_HEADS: dict[str, Callable[[CfgNode, Backbone], ROIHeads]] = {
    "StandardROIHeads": build_standard_heads,
    "Res5ROIHeads": build_res5_heads,
    # MoCo paper, appendix A.1: with all BN tuned, res5 in the head needs a norm after it to control
    # the scale of what the head sees
    "Res5ROIHeadsExtraNorm": partial(build_res5_heads, extra_norm=True),
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


def build_solver(cfg: CfgNode, model: torch.nn.Module) -> Solver:
    """The optimizer of the model's trainable parameters and their rates."""
    return Solver(build_optimizer(cfg, model), build_learning_rate(cfg))


def build_learning_rate(cfg: CfgNode) -> LearningRate:
    """The factor of the base learning rate at every iteration."""
    solver = cfg.SOLVER
    cosine_end = solver.BASE_LR_END / solver.BASE_LR
    return LearningRate(
        max_iter=solver.MAX_ITER,
        steps=sorted(step for step in solver.STEPS if step <= solver.MAX_ITER),
        gamma=solver.GAMMA,
        cosine_end=cosine_end if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" else None,
        warmup_iters=solver.WARMUP_ITERS,
        warmup_factor=solver.WARMUP_FACTOR,
        warmup_method=solver.WARMUP_METHOD,
    )
