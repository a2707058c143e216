"""A pre-training run: from a config to OUTPUT_DIR/checkpoint.pth.

The steps are in pretrain/loop.py; here is what comes before the first one.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml

from moco_det.foundation import collectives, declared
from moco_det.foundation.atomic import write_text
from moco_det.foundation.checkpoints import newest_whole
from moco_det.foundation.errors import InputError
from moco_det.foundation.folders import claimed, logged
from moco_det.foundation.launching import torchrun_group, torchrun_process
from moco_det.foundation.memory import ran_out
from moco_det.foundation.metrics_file import (
    MetricsFile,
    Record,
    event_writer,
    import_wandb,
    numbers,
    wandb_writer,
)
from moco_det.foundation.precision import pick_device, use_bfloat16
from moco_det.foundation.stopping import deferred
from moco_det.foundation.strict_yaml import flatten
from pretrain import checkpoints
from pretrain.build import build_loop
from pretrain.config import PretrainConfig
from pretrain.loop import Loop, Writer
from pretrain.schedule import schedule_warnings

logger = logging.getLogger(__name__)

Found = tuple[Path, dict[str, Any]]  # a checkpoint and its content

# What may change between a run and its continuation without changing what is learned.
FREE = (
    "OUTPUT_DIR",
    "DEVICE",
    "PRECISION",  # the run goes on in the one it has
    "DATA.PATH",
    "DATA.WORKERS",
    "DATA.CACHE_MB",
    "DATA.STRICT",
    "DATA.MAX_CORRUPT",
    "CHECKPOINT_EVERY",
    "TENSORBOARD",
    "WANDB",
    "KNN.",  # measures, and does not teach
)


def train(cfg: PretrainConfig, *, resume: bool = False) -> Path:
    """Pre-train as `cfg` says; returns the path of OUTPUT_DIR/checkpoint.pth.

    With `resume`, continues from the newest whole checkpoint of OUTPUT_DIR, or starts where there
    is none; a finished run returns at once. Under torchrun every process calls this, and the main
    one writes. Raises InputError for bad input, before anything is written where that is possible.
    """
    device, folder = pick_device(cfg.DEVICE), Path(cfg.OUTPUT_DIR)
    import_wandb(cfg.WANDB)
    with torchrun_group(torchrun_process(), device.type), ExitStack() as stack:
        fresh = not folder.exists()
        collectives.on_main(lambda: stack.enter_context(claimed(folder)))
        if collectives.is_main():
            stack.enter_context(logged(folder, "pretrain", "moco_det"))
        return _train(cfg, device, folder, resume=resume, fresh=fresh)


def _train(
    cfg: PretrainConfig, device: torch.device, folder: Path, *, resume: bool, fresh: bool
) -> Path:
    loop = None
    try:
        found = _find_checkpoint(cfg, folder, resume=resume)
        if found is not None and found[0].name == checkpoints.FINAL:
            logger.info("%s is finished already", found[0])
            return found[0]
        bfloat16 = _choose_bfloat16(cfg, device, found)
        begun_by = 0 if found is None else checkpoints.begun_by(found[1])
        loop = build_loop(cfg, device, bfloat16=bfloat16, begun_by=begun_by)
        if found is not None:
            loop.restore(found[1], found[0])
        with ExitStack() as stack:
            if collectives.is_main():
                write_text(folder / "config.yaml", yaml.safe_dump(cfg.plain()))
                loop.writers = open_writers(
                    cfg, stack, upto=loop.iteration, unmeasured=loop.unmeasured
                )
                _announce(cfg, loop)
            stack.enter_context(deferred())
            loop.go()
            return loop.save(checkpoints.FINAL)
    except KeyboardInterrupt:
        if collectives.is_main():
            kept = checkpoints.in_folder(folder)
            start = f"the start: no checkpoint yet (CHECKPOINT_EVERY {cfg.CHECKPOINT_EVERY})"
            logger.info("--resume goes on from %s", kept[0] if kept else start)
        raise
    except Exception as error:
        reason = _bad_input(cfg, error)
        if reason is None:
            raise
        nothing_learned = loop is None or loop.iteration == 0
        if fresh and nothing_learned and collectives.is_main():
            shutil.rmtree(folder, ignore_errors=True)
        raise InputError(reason) from error


def open_writers(
    cfg: PretrainConfig, stack: ExitStack, *, upto: int, unmeasured: bool = False
) -> list[Writer]:
    """The writers of a run that continues after iteration `upto`, 0 for a new one.

    `stack` closes them. What a resumed run writes again takes the place of the old. Where
    TensorBoard is not installed the log says so.
    """
    folder, writers = Path(cfg.OUTPUT_DIR), list[Writer]()
    also = stack.enter_context(wandb_writer(cfg.WANDB, folder, cfg.plain()))
    events = event_writer(folder, upto + 1 if upto else 0) if cfg.TENSORBOARD else None
    if events is not None:
        stack.callback(events.close)

        def write(record: Record) -> None:
            for name, value in numbers(record).items():
                events.add_scalar(f"pretrain/{name}", value, record["iteration"])

        writers.append(write)
    path = folder / "metrics.jsonl"

    def kept(record: Record) -> bool:
        again = unmeasured and record["iteration"] == upto and "knn_accuracy" in record
        return upto > 0 and record["iteration"] <= upto and not again

    return [MetricsFile(path, keep=kept, also=also).write, *writers]


def _bad_input(cfg: PretrainConfig, error: Exception) -> str | None:
    """What of an error the user can mend, None for a fault of the program."""
    first = str(error).strip().partition("\n")[0]
    if isinstance(error, InputError):
        return str(error)
    if cfg.COMPILE and type(error).__module__.startswith("torch._"):
        return f"COMPILE is True and torch.compile failed ({first}): set COMPILE False"
    if ran_out(error):
        return (
            f"memory has run out ({first}): lower SOLVER.BATCH, the number of negatives, "
            "ENCODER.DIM or AUGMENT.SIZE, or instead of a bank use METHOD moco, whose queue does "
            "not grow with the images; moco-det plan says what a run needs"
        )
    return None


def _choose_bfloat16(cfg: PretrainConfig, device: torch.device, found: Found | None) -> bool:
    """Whether to compute in bfloat16: as the run has begun, else as PRECISION says."""
    wanted = use_bfloat16(cfg.PRECISION, device)
    begun = wanted if found is None else bool(found[1]["state"].get("bfloat16", wanted))
    if found is None or begun == wanted:
        return wanted
    name = "bfloat16" if begun else "float32"
    if cfg.PRECISION != "auto":
        raise InputError(
            f"PRECISION is {cfg.PRECISION} and {found[0]} was trained in {name}: go on in that"
        )
    logger.info("PRECISION auto goes on in %s, as the run began", name)
    return begun


def _find_checkpoint(cfg: PretrainConfig, folder: Path, *, resume: bool) -> Found | None:
    """The checkpoint to go on from, read by the main process for all; None for a new run."""

    def find() -> Found | None:
        if not resume and checkpoints.in_folder(folder):
            raise InputError(
                f"OUTPUT_DIR {folder} holds a run already: resume it (--resume) or name another"
            )
        if not resume:
            return None
        found = newest_whole(checkpoints.in_folder(folder), checkpoints.read_run)
        if found is not None:
            _check_same_config(cfg, found[1], found[0])
        return found

    return collectives.on_main(find)


def _check_same_config(cfg: PretrainConfig, content: dict[str, Any], path: Path) -> None:
    # an older version's run has none of the later keys, and goes on with their defaults
    keys = declared.declared_keys(PretrainConfig)
    before = {name: declared.default_of(key) for name, key in keys.items()}
    before |= flatten(content["config"])
    now = flatten(cfg.plain())
    differ = [
        f"{key} ({before.get(key)} then, {now.get(key)} now)"
        for key in sorted(before.keys() | now.keys())
        if not key.startswith(FREE) and before.get(key) != now.get(key)
    ]
    if differ:
        raise InputError(f"{path} was made with another config: {', '.join(differ)}")


def _announce(cfg: PretrainConfig, loop: Loop) -> None:
    method, images, world = loop.method, loop.source.images, collectives.world_size()
    logger.info(
        f"pretrain: torch {torch.__version__} on {loop.device.type}, {world} "
        f"process{'es' if world > 1 else ''}, {'bfloat16' if method.use_bfloat16 else 'float32'}; "
        f"{method.name} {cfg.ENCODER.ARCH}, {images} images, {loop.total} iterations of "
        f"{cfg.SOLVER.BATCH}"
    )
    if cfg.COMPILE:
        how = "torch.compile over the encoders" if loop.rate is None else "a CUDA graph"
        logger.info("COMPILE: %s", how)
    for line in method.notes():
        logger.info("%s", line)
    late = schedule_warnings(cfg.SOLVER, total=loop.total, steps=loop.epoch_steps)
    for line in [*late, *method.warnings(batch=cfg.SOLVER.BATCH, images=images)]:
        logger.warning("%s", line)
