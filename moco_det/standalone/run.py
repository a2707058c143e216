"""A run of the standalone engine, from a config to one row of results."""

from __future__ import annotations

import logging
import random
import shlex
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from moco_det import __version__
from moco_det.foundation import collectives
from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import choose_precision
from moco_det.results import append_row
from moco_det.runs.folder import (
    check_free,
    check_results,
    check_unchanged,
    claimed,
    write_config,
)
from moco_det.runs.row import (
    cpu_name,
    describe_data,
    describe_engine,
    describe_hardware,
    describe_init,
    load_pair,
    make_row,
    now,
    overlap_warnings,
    relative,
    sha256_of,
)
from moco_det.settings.config import dump
from moco_det.standalone.build import build_detector
from moco_det.standalone.checkpoint import checkpoints
from moco_det.standalone.scaling import scale_to_processes, scaling_line, small_norm_groups
from moco_det.standalone.state import resume_model, seed_of_run
from moco_det.standalone.train import captures, evaluate, train, training_records
from moco_det.weights.loading import load_weights

# The room's logger, so that the log file of a run holds what every module says.
logger = logging.getLogger("moco_det.standalone")


@dataclass(frozen=True)
class RunOptions:
    """What a run needs besides its config.

    ``results`` None means results.jsonl in the output folder. ``init_name`` None calls the arm by
    its weights. ``strict`` makes a single broken image an error.
    """

    config_name: str
    resume: bool = False
    eval_only: bool = False
    strict: bool = False
    results: Path | None = None
    init_name: str | None = None
    command: str = ""


def run(cfg: CfgNode, options: RunOptions) -> dict[str, Any]:
    """Train as the config says and score the test set; returns the metrics.

    In several processes every process calls this. Raises InputError for whatever is wrong with
    the data, the weights or the combination of them, before the first step.
    """
    if options.eval_only and not (options.resume or cfg.MODEL.WEIGHTS):
        raise InputError(
            "--eval-only would score a random detector: name its checkpoint in MODEL.WEIGHTS, "
            "or add --resume to take OUTPUT_DIR's last one"
        )
    asked, cfg = cfg, scale_to_processes(cfg, collectives.world_size())
    output = Path(cfg.OUTPUT_DIR)
    leader = collectives.rank() == 0
    device = check_device(cfg.MODEL.DEVICE)
    precision = choose_precision(amp=cfg.SOLVER.AMP.ENABLED, device=device)
    train_set, test_set = load_pair(
        train=cfg.DATASETS.TRAIN,
        test=cfg.DATASETS.TEST,
        num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        with_masks=cfg.MODEL.MASK_ON,
        strict=options.strict,
        progress=leader,
    )
    going_on = options.resume and not options.eval_only and bool(checkpoints(output))
    drawn_before = seed_of_run(output) if going_on else -1
    seed = shared_seed(cfg.SEED if cfg.SEED >= 0 else drawn_before)
    torch.manual_seed(seed + collectives.rank())

    model = build_detector(cfg)
    loaded = load_weights(cfg, model)
    # whatever can be wrong is found before the folder is made
    if not options.eval_only:
        training_records(cfg, train_set)
    elif options.resume:
        resume_model(model, output)
    warnings = [*train_set.skipped, *(f"test: {line}" for line in test_set.skipped)]
    warnings += overlap_warnings(train_set, test_set)
    if not options.eval_only:
        warnings += small_norm_groups(cfg, collectives.world_size())
    if cfg.SOLVER.CUDA_GRAPHS and not captures(cfg, collectives.world_size()):
        warnings.append("SOLVER.CUDA_GRAPHS needs a single process on a GPU: not used")
    if precision.note:
        warnings.append(precision.note)
    check_free(
        output,
        resume=options.resume,
        eval_only=options.eval_only,
        weights=cfg.MODEL.WEIGHTS,
    )
    if going_on:
        warnings += check_unchanged(output, asked)
    if leader and options.results is not None:
        check_results(options.results)
    with claimed(output) if leader else nullcontext():
        if leader:
            write_config(output, asked, eval_only=options.eval_only)
            log_to_file(output)
            logger.info(
                "engine standalone %s, torch %s, %s on %s, %d process(es), seed %d",
                __version__,
                torch.__version__,
                precision.name,
                device,
                collectives.world_size(),
                seed,
            )
            if cfg is not asked:
                logger.info("%s", scaling_line(asked, cfg))
            logger.info("%s", loaded.line())
            for line in warnings:
                logger.warning("%s", line)
        model.to(device)

        if options.eval_only:
            return evaluate(cfg, model, test_set, precision, output, iteration=None)

        started, clock = now(), time.monotonic()
        try:
            metrics, final = train(
                cfg, model, train_set, test_set, precision, output, seed, resume=options.resume
            )
        except KeyboardInterrupt:
            if leader:
                logger.info("%s", what_is_kept(output, cfg.SOLVER.CHECKPOINT_PERIOD))
            raise
        wall = time.monotonic() - clock
        if leader:
            whole = cfg.MODEL.WEIGHTS and loaded.backbone is None  # a detector's own checkpoint
            sha256 = sha256_of(cfg.MODEL.WEIGHTS) if whole else None
            results = options.results or output / "results.jsonl"
            row = make_row(
                run=output.name,
                status="finished",
                with_masks=cfg.MODEL.MASK_ON,
                dataset=describe_data(train_set, test_set),
                config_name=options.config_name,
                config=dump(asked),
                init=describe_init(options.init_name, cfg.MODEL.WEIGHTS, loaded.backbone, sha256),
                engine=describe_engine("standalone", __version__),
                precision=precision.name,
                seed=seed,
                iterations=final,
                batch=cfg.SOLVER.IMS_PER_BATCH,
                wall_seconds=wall,
                hardware=describe_hardware(
                    torch.cuda.get_device_name() if device == "cuda" else cpu_name()
                ),
                metrics=metrics,
                output_dir=relative(output, results.parent),
                command=options.command or shlex.join(sys.argv),
                started=started,
                warnings=warnings,
            )
            append_row(results, row)
            logger.info("one row added to %s", results)
        return metrics


def run_in_process(cfg: CfgNode, options: RunOptions) -> None:
    """``run`` as the entry of one of several processes, which log on their own."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    run(cfg, options)


def check_device(name: str) -> str:
    """The device's kind, or InputError where the machine lacks it."""
    kind = name.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"MODEL.DEVICE is {name!r}: the standalone engine runs on cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "MODEL.DEVICE is cuda, but this machine has no CUDA device: add MODEL.DEVICE cpu"
        )
    return kind


def what_is_kept(output: Path, period: int) -> str:
    """What --resume finds of a run that was stopped."""
    pointer = output / "last_checkpoint"
    if pointer.is_file():
        return f"--resume goes on from {output / pointer.read_text(encoding='utf-8').strip()}"
    return f"no checkpoint yet (SOLVER.CHECKPOINT_PERIOD {period}): --resume starts from the start"


def shared_seed(seed: int) -> int:
    """The config's seed, or one drawn by the first process for all."""
    drawn = seed if seed >= 0 else random.SystemRandom().randrange(2**31)
    return int(collectives.gather_objects(drawn)[0])


def log_to_file(output: Path) -> None:
    """What this room says, into the run's log.txt from now on."""
    handler = logging.FileHandler(output / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for old in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
        logger.removeHandler(old)
        old.close()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
