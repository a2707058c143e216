"""A run inside detectron2, from a config to one row of results: the files of `standalone`."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import random
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import detectron2
import torch
import torch.multiprocessing as mp
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch import nn

from moco_det.data import DetectionDataset
from moco_det.foundation.atomic import write_text
from moco_det.foundation.errors import InputError
from moco_det.foundation.launching import check_gpus, torchrun_group, torchrun_process
from moco_det.plugin.catalog import load_catalog_data
from moco_det.plugin.config import check_machine, load_config, set_values
from moco_det.plugin.datasets import joined, load_data
from moco_det.plugin.evaluator import evaluate
from moco_det.plugin.their_scorer import check_scorer
from moco_det.plugin.trainer import Trainer, build_detector
from moco_det.plugin.weights import check_resumable
from moco_det.results import append_row
from moco_det.runs.folder import (
    check_free,
    check_results,
    check_unchanged,
    claimed,
)
from moco_det.runs.row import (
    cpu_name,
    describe_data,
    describe_engine,
    describe_hardware,
    describe_init,
    make_row,
    now,
    overlap_warnings,
    relative,
    sha256_of,
)
from moco_det.settings.config import dump
from moco_det.weights.loading import Loaded, load_weights

logger = logging.getLogger(__name__)

LOGGERS = ("detectron2", "fvcore", "moco_det")


@dataclass(frozen=True)
class RunOptions:
    """What a run needs besides its config; ``config_file`` and ``eval_only`` detectron2 reads too.

    ``results`` None means results.jsonl in the output folder. ``init_name`` None calls the arm by
    its weights. ``strict`` makes a single broken image an error.
    """

    config_file: str
    resume: bool = False
    eval_only: bool = False
    strict: bool = False
    results: Path | None = None
    init_name: str | None = None
    command: str = ""


def launch_detectron2(args: argparse.Namespace, command: str) -> None:
    """Do what the command line of train_net asks for, in as many processes as it says."""
    cfg = load_config(args.config_file, args.opts)
    options = RunOptions(
        config_file=args.config_file,
        resume=args.resume,
        eval_only=args.eval_only,
        strict=args.strict,
        results=args.results,
        init_name=args.init_name,
        command=command,
    )
    started = torchrun_process()
    if started is not None:
        check_processes(cfg, started.local_world_size, started.world_size)
        with torchrun_group(started, cfg.MODEL.DEVICE.split(":")[0]):
            # what detectron2's own launch does in a process that it has started
            comm.create_local_process_group(started.local_world_size)
            comm.synchronize()
            run(cfg, options)
        return
    check_processes(cfg, args.num_gpus, args.num_gpus * args.num_machines)
    try:
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(cfg, options),
        )
    except mp.ProcessRaisedException as error:
        line = next((x for x in reversed(str(error).splitlines()) if "InputError: " in x), None)
        if line is None:
            raise
        raise InputError(line.split("InputError: ", 1)[1]) from None


def check_processes(cfg: CfgNode, on_this_machine: int, total: int) -> None:
    """InputError where detectron2 cannot run in that many processes."""
    check_machine(cfg.MODEL.DEVICE)
    if total > 1 and cfg.MODEL.DEVICE.startswith("cpu"):
        raise InputError(
            "detectron2's trainer runs in several processes on GPUs only: use --num-gpus 1 "
            "(torchrun: --nproc-per-node 1) or --engine standalone"
        )
    if cfg.MODEL.DEVICE.startswith("cuda"):
        check_gpus(on_this_machine)
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if not reference and batch % total:
        raise InputError(f"SOLVER.IMS_PER_BATCH {batch} does not divide by {total} processes")


def run(cfg: CfgNode, options: RunOptions) -> dict[str, Any]:
    """Train as the config says and score the test set; the metrics, on the first process.

    Whatever is wrong with the data, the weights or their combination is an InputError before
    anything is written.
    """
    output = Path(cfg.OUTPUT_DIR)
    if options.eval_only and not (options.resume or cfg.MODEL.WEIGHTS):
        raise InputError(
            "--eval-only would score a random detector: name its checkpoint in MODEL.WEIGHTS, "
            "or add --resume to take OUTPUT_DIR's last one"
        )
    check_free(
        output,
        resume=options.resume,
        eval_only=options.eval_only,
        weights=cfg.MODEL.WEIGHTS,
    )
    train_set, test_set = data_of(cfg, strict=options.strict)
    running, warnings = resolve(cfg)
    warnings += [*train_set.skipped, *(f"test: {line}" for line in test_set.skipped)]
    warnings += overlap_warnings(train_set, test_set)
    seed_all_rng(running.SEED + comm.get_rank())
    model = build_detector(running)
    loaded = load_weights(cfg, model)
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    resume = options.resume and checkpointer.has_checkpoint()
    if resume:
        path = checkpointer.get_checkpoint_file()
        check_resumable(model, path, training=not options.eval_only)
        if not options.eval_only:
            warnings += check_unchanged(output, cfg)
            warnings.append(
                f"resumed from {Path(path).name}: detectron2 saves no random state, so the stream "
                "of images starts anew and the end is not that of an uninterrupted run"
            )
    elif options.resume and options.eval_only:
        raise InputError(f"--resume: {output} holds no whole checkpoint")

    leader = comm.is_main_process()
    if leader and options.results is not None:
        check_results(options.results)
    with claimed(output) if leader else nullcontext(), log_of_run(output):
        begin(cfg, running, options, loaded, warnings)
        if options.eval_only:
            checkpointer.resume_or_load("", resume=resume)
            return evaluate(running, model, test_set, running.DATASETS.TEST[0], output)
        started, clock = now(), time.monotonic()
        trainer = train(running, model, test_set, resume=resume)
        wall = time.monotonic() - clock
        if comm.is_main_process():
            whole = cfg.MODEL.WEIGHTS and loaded.backbone is None  # a detector's own checkpoint
            sha256 = sha256_of(cfg.MODEL.WEIGHTS) if whole else None
            results = options.results or output / "results.jsonl"
            row = make_row(
                run=output.name,
                status="finished",
                with_masks=cfg.MODEL.MASK_ON,
                dataset=describe_data(train_set, test_set),
                config_name=Path(options.config_file).stem,
                config=dump(cfg),
                init=describe_init(options.init_name, cfg.MODEL.WEIGHTS, loaded.backbone, sha256),
                engine=describe_detectron2(),
                precision=precision_of(running),
                seed=running.SEED,
                iterations=trainer.max_iter,
                batch=trainer.cfg.SOLVER.IMS_PER_BATCH,
                wall_seconds=wall,
                hardware=describe_hardware(
                    cpu_name() if on_cpu(cfg) else torch.cuda.get_device_name()
                ),
                metrics=trainer.metrics,
                output_dir=relative(output, results.parent),
                command=options.command or shlex.join(sys.argv),
                started=started,
                warnings=warnings,
            )
            append_row(results, row)
            logger.info("one row added to %s", results)
        return trainer.metrics


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
        mask_format=cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None,
        skip_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        strict=strict,
        progress=progress,
    )


def resolve(cfg: CfgNode) -> tuple[CfgNode, list[str]]:
    """The config that runs: a drawn seed, joined data sets, and the precision there is."""
    drawn = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(2**31)
    changes: list[Any] = ["SEED", int(comm.all_gather(drawn)[0])]
    if cfg.TEST.EVALUATOR == "moco_det":  # detectron2 knows its own data sets one by one
        changes += ["DATASETS.TRAIN", (joined(cfg.DATASETS.TRAIN),)]
        changes += ["DATASETS.TEST", (joined(cfg.DATASETS.TEST),)]
    warnings = []
    if cfg.SOLVER.AMP.ENABLED and on_cpu(cfg):
        changes += ["SOLVER.AMP.ENABLED", False]
        warnings.append("SOLVER.AMP.ENABLED, but detectron2's AMPTrainer needs CUDA: float32")
    return set_values(cfg, changes), warnings


def train(
    running: CfgNode, model: nn.Module, test_set: DetectionDataset, *, resume: bool
) -> Trainer:
    """All iterations that are left, and the final score."""
    trainer = Trainer(running, model=model, test_set=test_set)
    if resume:
        trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer


def begin(
    cfg: CfgNode, running: CfgNode, options: RunOptions, loaded: Loaded, warnings: list[str]
) -> None:
    """The first lines of the log, the folder and config.yaml."""
    engine = describe_detectron2()
    logger.info(
        "engine detectron2 %s%s, torch %s, %s on %s, %d process(es), seed %d",
        engine["version"],
        f" ({engine['commit'][:10]})" if "commit" in engine else "",
        torch.__version__,
        precision_of(running),
        cfg.MODEL.DEVICE,
        comm.get_world_size(),
        running.SEED,
    )
    own = Path(cfg.OUTPUT_DIR) / "config.yaml"
    kept = own.read_text(encoding="utf-8") if options.eval_only and own.exists() else None
    default_setup(running, options)
    if comm.is_main_process():
        # detectron2 has written the one that runs. As asked; the seed that was drawn is in the row
        write_text(own, dump(cfg) if kept is None else kept)
    logger.info("%s", loaded.line())
    for line in warnings:
        logger.warning("%s", line)


@contextmanager
def log_of_run(output: Path) -> Iterator[None]:
    """Let detectron2's loggers and ours write to the screen and to log.txt, for one run.

    detectron2 remembers for good which loggers it has set up; without putting them back, a second
    run of the same process would write into the first one's log.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(one.level, one.propagate, list(one.handlers)) for one in loggers]
    loop = logging.getLogger("detectron2.engine.train_loop")
    setup_logger.cache_clear()
    setup_logger(str(output), comm.get_rank(), name="moco_det")
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


def is_no_input_error(record: logging.LogRecord) -> bool:
    """False for the traceback that detectron2 logs of an error which the tool tells in a line."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (InputError, FloatingPointError))


def describe_detectron2() -> dict[str, Any]:
    """The ``engine`` of a row, with the commit where pip wrote it down (PEP 610)."""
    engine = describe_engine("detectron2", detectron2.__version__)
    try:
        text = importlib.metadata.distribution("detectron2").read_text("direct_url.json")
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        commit = None
    return {**engine, "commit": commit} if commit else engine


def precision_of(running: CfgNode) -> str:
    """detectron2's AMPTrainer computes in float16, its SimpleTrainer in float32."""
    return "float16" if running.SOLVER.AMP.ENABLED else "float32"


def on_cpu(cfg: CfgNode) -> bool:
    return bool(cfg.MODEL.DEVICE.startswith("cpu"))
