"""detectron2 as `moco_det.runs` drives it."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from moco_det.data import DetectionDataset
from moco_det.data.check import choose_mask_format
from moco_det.foundation import collectives, stopping
from moco_det.foundation.checkpoints import Content, noted_last
from moco_det.foundation.errors import InputError
from moco_det.foundation.metrics_file import Writer
from moco_det.foundation.precision import check_device
from moco_det.plugin.catalog import load_catalog_data
from moco_det.plugin.datasets import joined, load_data, register
from moco_det.plugin.evaluator import Evaluator, check_scorer, evaluate
from moco_det.plugin.trainer import Trainer, build_detector
from moco_det.plugin.weights import check_resumable, run_state
from moco_det.settings.config import set_values
from moco_det.settings.engine import Detector, RunOptions
from moco_det.weights.download import local_path
from moco_det.weights.loading import (
    load_model_state,
    load_weights,
    load_whole_detector,
    read_checkpoint,
)

logger = logging.getLogger(__name__)

LOGGERS = ("detectron2", "fvcore", "moco_det")


class Detectron2Run:
    """A `moco_det.settings.engine.PreparedRun`."""

    def __init__(self, cfg: CfgNode, options: RunOptions) -> None:
        self.options, self.output = options, Path(cfg.OUTPUT_DIR)
        self.train_set, self.test_set = data_of(cfg, strict=options.strict)
        path = self.path = (noted_last(self.output) if options.resume else None) or Path()
        self.resumes = path != Path()
        if options.resume and options.eval_only and not self.resumes:
            raise InputError(f"--resume: {self.output} holds no whole checkpoint")
        found = self.found = read_checkpoint(path) if self.resumes else {}
        state = run_state(found)
        self.cfg, self.warnings = resolve(cfg, drawn_before=state.get("seed"))
        if cfg.MODEL.MASK_ON and cfg.TEST.EVALUATOR == "moco_det":
            mask_format, said = choose_mask_format(self.train_set, cfg.INPUT.MASK_FORMAT)
            self.cfg = set_values(self.cfg, ["INPUT.MASK_FORMAT", mask_format])
            self.warnings += said
        # detectron2's AMPTrainer computes in float16, its SimpleTrainer in float32
        self.precision = "float16" if self.cfg.SOLVER.AMP.ENABLED else "float32"
        seed_all_rng(self.cfg.SEED + comm.get_rank())
        self.model = build_detector(self.cfg)
        self.loaded = load_weights(cfg, self.model)
        scaled = Trainer.auto_scale_workers(self.cfg, comm.get_world_size())
        self.iterations = scaled.SOLVER.MAX_ITER
        self.trained: int | None = None
        self.trained_seconds = float(state.get("seconds", 0))
        self.begun_by = len(state["random"]) if state else None
        if self.resumes and options.eval_only:
            load_model_state(self.model, found["model"], path)
        elif self.resumes:
            self.trained = check_resumable(self.model, path, found)
            self.warnings += not_restored(path, state)

    @contextmanager
    def log_into(self, output: Path) -> Iterator[None]:
        """Let detectron2's loggers and ours write to the screen and to log.txt, for one run.

        detectron2 remembers for good which loggers it has set up; without putting them back, a
        second run of the same process would write into the first one's log.
        """
        loggers = [logging.getLogger(name) for name in LOGGERS]
        before = [(one.level, one.propagate, list(one.handlers)) for one in loggers]
        loop = logging.getLogger("detectron2.engine.train_loop")
        setup_logger.cache_clear()
        for name in LOGGERS:
            setup_logger(str(output), comm.get_rank(), name=name)
        loop.addFilter(is_no_input_error)
        try:
            yield
        finally:
            loop.removeFilter(is_no_input_error)
            for one, (level, propagate, handlers) in zip(loggers, before, strict=True):
                one.setLevel(level)
                one.propagate = propagate
                one.handlers[:] = handlers
            setup_logger.cache_clear()

    def begin(self) -> None:
        """What detectron2's default_setup does but for its config.yaml, which a resume reads."""
        logger.info("Environment info:\n%s", collect_env_info())
        logger.info("Running with full config:\n%s", self.cfg.dump())
        seed_all_rng(self.cfg.SEED + comm.get_rank())
        if not self.options.eval_only:
            torch.backends.cudnn.benchmark = self.cfg.CUDNN_BENCHMARK
        if precision := self.cfg.get("FLOAT32_PRECISION"):  # detectron2 0.6 has no such key
            torch.set_float32_matmul_precision(precision)
            torch.backends.cudnn.allow_tf32 = precision != "highest"

    def train(self, also: Writer | None) -> dict[str, Any]:
        trainer = Trainer(self.cfg, model=self.model, test_set=self.test_set, also=also)
        self.cfg = trainer.cfg  # scaled to the processes
        if self.resumes:
            trainer.go_on_from(self.path, self.found)
        trainer.train()
        return trainer.metrics

    def evaluate(self) -> dict[str, Any]:
        name = self.cfg.DATASETS.TEST[0]
        with stopping.deferred():
            return evaluate(self.cfg, self.model, self.test_set, name, self.output)


class Detectron2Engine:
    """A `moco_det.settings.engine.Engine`."""

    def describe(self) -> dict[str, str]:
        """With the commit where pip wrote it down (PEP 610)."""
        names = {"name": "detectron2", "version": detectron2.__version__}
        try:
            text = importlib.metadata.distribution("detectron2").read_text("direct_url.json")
            commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
        except (importlib.metadata.PackageNotFoundError, ValueError):
            commit = None
        return {**names, "commit": commit} if commit else names

    def check_processes(self, cfg: CfgNode, total: int) -> None:
        if check_device(cfg.MODEL.DEVICE) == "cpu" and total > 1:
            raise InputError(
                "detectron2's trainer runs in several processes on GPUs only: use --num-gpus 1 "
                "(torchrun: --nproc-per-node 1) or --engine standalone"
            )
        batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
        if not reference and batch % total:
            raise InputError(f"SOLVER.IMS_PER_BATCH {batch} does not divide by {total} processes")

    def join(self, local_world_size: int) -> None:
        """What detectron2's own launch does in a process that it has started."""
        comm.create_local_process_group(local_world_size)
        comm.synchronize()

    def prepare(self, cfg: CfgNode, options: RunOptions) -> Detectron2Run:
        return Detectron2Run(cfg, options)

    def open_detector(self, cfg: CfgNode) -> Detector:
        model = build_detector(cfg)
        load_whole_detector(cfg, model)
        model.eval()

        def detect(dataset: DetectionDataset, title: str) -> list[dict[str, Any]]:
            name = "images to detect on"
            register(name, dataset)
            found = Evaluator(dataset, Path(), with_masks=cfg.MODEL.MASK_ON)
            workers = cfg.DATALOADER.NUM_WORKERS if len(dataset) > 1 else 0
            loader = build_detection_test_loader(cfg, name, num_workers=workers)
            with torch.no_grad():
                for inputs in tqdm(
                    loader, desc=title, unit="image", mininterval=1, disable=not title
                ):
                    found.process(inputs, model(inputs))
            return found.rows

        return Detector(
            detect,
            cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            local_path(cfg.MODEL.WEIGHTS),
            tuple(cfg.DATASETS.TRAIN),
            "float32",  # mixed precision is for training in detectron2
            model,
        )


def data_of(cfg: CfgNode, *, strict: bool) -> tuple[DetectionDataset, DetectionDataset]:
    """The training and test sets of a config, registered with detectron2 and checked."""
    progress = comm.is_main_process()
    if cfg.TEST.EVALUATOR == "detectron2":
        pair = load_catalog_data(
            train=cfg.DATASETS.TRAIN,
            test=cfg.DATASETS.TEST,
            num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            keypoints=cfg.MODEL.KEYPOINT_ON,
            progress=progress,
        )
        check_scorer(cfg.DATASETS.TEST[0])
        return pair
    return load_data(
        train=cfg.DATASETS.TRAIN,
        test=cfg.DATASETS.TEST,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        with_masks=cfg.MODEL.MASK_ON,
        skip_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        strict=strict,
        progress=progress,
    )


def not_restored(path: Path, state: Content) -> list[str]:
    """What a resumed run has not of the run that it goes on from."""
    if not state:
        return [
            f"resumed from {path.name}, which has no random state: the end is not that of an "
            "uninterrupted run"
        ]
    begun, processes = len(state["random"]), comm.get_world_size()
    if begun == processes:
        return []
    return [
        f"resumed from {path.name} of {begun} process(es) in {processes}: the batches stay, the "
        "random choice of anchors and proposals is not that of an uninterrupted run"
    ]


def resolve(cfg: CfgNode, drawn_before: int | None = None) -> tuple[CfgNode, list[str]]:
    """The config that runs: a drawn seed, joined data sets, and the precision there is."""
    drawn = cfg.SEED if cfg.SEED >= 0 else drawn_before
    if drawn is None:
        drawn = random.SystemRandom().randrange(2**31)
    changes: list[Any] = ["SEED", int(collectives.from_main(drawn))]
    if cfg.TEST.EVALUATOR == "moco_det":  # detectron2 knows its own data sets one by one
        changes += ["DATASETS.TRAIN", (joined(cfg.DATASETS.TRAIN),)]
        changes += ["DATASETS.TEST", (joined(cfg.DATASETS.TEST),)]
    warnings = []
    if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE.startswith("cpu"):
        changes += ["SOLVER.AMP.ENABLED", False]
        warnings.append("SOLVER.AMP.ENABLED, but detectron2's AMPTrainer needs CUDA: float32")
    return set_values(cfg, changes), warnings


def is_no_input_error(record: logging.LogRecord) -> bool:
    """False for the traceback that detectron2 logs of an error which the tool tells in a line."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (InputError, FloatingPointError))
