"""The standalone engine as `moco_det.runs` drives it."""

from __future__ import annotations

import logging
import random
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from moco_det import __version__
from moco_det.data import DetectionDataset
from moco_det.data.check import choose_mask_format, load_pair
from moco_det.foundation import collectives
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import logged
from moco_det.foundation.metrics_file import Writer
from moco_det.foundation.precision import check_device, choose_precision
from moco_det.settings.config import set_values
from moco_det.settings.engine import Detector, RunOptions
from moco_det.standalone.build import build_detector, build_mapper
from moco_det.standalone.checkpoint import begun_by, check_resumable, last_checkpoint
from moco_det.standalone.evaluate import predict
from moco_det.standalone.scaling import scale_to_processes, scaling_line, small_norm_groups
from moco_det.standalone.train import captures, evaluate, train, training_records
from moco_det.timm_backbones.network import TimmBackbone
from moco_det.weights.download import local_path
from moco_det.weights.loading import (
    check_model_state,
    load_model_state,
    load_weights,
    load_whole_detector,
)

logger = logging.getLogger(__name__)


class StandaloneRun:
    """A `moco_det.settings.engine.PreparedRun`."""

    def __init__(self, cfg: CfgNode, options: RunOptions) -> None:
        processes = collectives.world_size()
        self.asked, self.cfg = cfg, scale_to_processes(cfg, processes)
        self.output = Path(cfg.OUTPUT_DIR)
        self.device = check_device(cfg.MODEL.DEVICE)
        self.computes = choose_precision(amp=cfg.SOLVER.AMP.ENABLED, device=self.device)
        self.precision = self.computes.name
        self.train_set, self.test_set = load_pair(
            train=cfg.DATASETS.TRAIN,
            test=cfg.DATASETS.TEST,
            num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            with_masks=cfg.MODEL.MASK_ON,
            strict=options.strict,
            progress=collectives.is_main(),
        )
        self.warnings: list[str] = []
        if cfg.MODEL.MASK_ON:
            found, self.warnings = choose_mask_format(self.train_set, cfg.INPUT.MASK_FORMAT)
            self.cfg = set_values(self.cfg, ["INPUT.MASK_FORMAT", found])
        self.found = last_checkpoint(self.output) if options.resume else None
        self.iterations = self.cfg.SOLVER.MAX_ITER
        self.trained: int | None = None
        self.begun_by: int | None = None
        self.trained_seconds = 0.0
        drawn_before = -1
        if self.found is not None and not options.eval_only:
            self.trained = check_resumable(*self.found)
            self.begun_by = begun_by(self.found[1])
            self.trained_seconds = float(self.found[1].get("seconds", 0))
            drawn_before = int(self.found[1].get("seed", -1))
        seed = shared_seed(cfg.SEED if cfg.SEED >= 0 else drawn_before)
        self.cfg = set_values(self.cfg, ["SEED", seed])
        torch.manual_seed(seed + collectives.rank())
        self.model = build_detector(self.cfg)
        self.loaded = load_weights(cfg, self.model)
        if self.trained is not None and self.found is not None:
            check_model_state(self.model, self.found[1]["model"], self.found[0])
        if options.eval_only:
            if self.found is not None:
                load_model_state(self.model, self.found[1]["model"], self.found[0])
            elif options.resume:
                raise InputError(f"--resume: {self.output} holds no whole checkpoint")
        else:
            training_records(self.cfg, self.train_set)
            timm = [m.norm for m in self.model.modules() if isinstance(m, TimmBackbone)]
            self.warnings += small_norm_groups(self.cfg, processes, *timm)
        if cfg.SOLVER.CUDA_GRAPHS and not captures(cfg, processes):
            self.warnings.append("SOLVER.CUDA_GRAPHS needs a single process on a GPU: not used")
        if self.computes.note:
            self.warnings.append(self.computes.note)

    def log_into(self, output: Path) -> AbstractContextManager[None]:
        """What this project's modules say, into log.txt on the main process."""
        return logged(output, "moco_det") if collectives.is_main() else nullcontext()

    def begin(self) -> None:
        reference = self.cfg.SOLVER.REFERENCE_WORLD_SIZE
        if collectives.is_main() and reference != self.asked.SOLVER.REFERENCE_WORLD_SIZE:
            logger.info("%s", scaling_line(self.asked, self.cfg))
        self.model.to(self.device)

    def train(self, also: Writer | None) -> dict[str, Any]:
        return train(
            self.cfg,
            self.model,
            self.train_set,
            self.test_set,
            self.computes,
            self.output,
            found=self.found,
            also=also,
        )

    def evaluate(self) -> dict[str, Any]:
        return evaluate(
            self.cfg, self.model, self.test_set, self.computes, self.output, iteration=None
        )


class StandaloneEngine:
    """A `moco_det.settings.engine.Engine`."""

    def describe(self) -> dict[str, str]:
        return {"name": "standalone", "version": __version__}

    def check_processes(self, cfg: CfgNode, total: int) -> None:
        several = check_device(cfg.MODEL.DEVICE) == "cpu" and total > 1
        if several and cfg.MODEL.TIMM.NORM == "SyncBN":
            raise InputError("MODEL.TIMM.NORM SyncBN is for GPUs: on a CPU use --num-gpus 1")

    def join(self, local_world_size: int) -> None:
        """Nothing but the process group is needed."""

    def prepare(self, cfg: CfgNode, options: RunOptions) -> StandaloneRun:
        return StandaloneRun(cfg, options)

    def open_detector(self, cfg: CfgNode) -> Detector:
        device = check_device(cfg.MODEL.DEVICE)
        precision = choose_precision(amp=cfg.SOLVER.AMP.ENABLED, device=device)
        model = build_detector(cfg)
        load_whole_detector(cfg, model)
        model.to(cfg.MODEL.DEVICE)
        mapper = build_mapper(cfg, train=False)

        def detect(dataset: DetectionDataset, title: str) -> list[dict[str, Any]]:
            return predict(
                model,
                dataset,
                mapper,
                precision,
                workers=cfg.DATALOADER.NUM_WORKERS if len(dataset) > 1 else 0,
                description=title,
            )

        return Detector(
            detect,
            cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            local_path(cfg.MODEL.WEIGHTS),
            tuple(cfg.DATASETS.TRAIN),
            precision.name,
            model,
        )


def shared_seed(seed: int) -> int:
    """The config's seed, or one drawn by the main process for all."""
    drawn = seed if seed >= 0 else random.SystemRandom().randrange(2**31)
    return int(collectives.from_main(drawn))
