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

from moco_det.foundation import collectives
from moco_det.foundation.errors import InputError
from moco_det.foundation.launching import torchrun_group, torchrun_process
from moco_det.foundation.precision import pick_device, use_bfloat16
from pretrain import augment, checkpoints, data, recording
from pretrain.config import CfgNode, check, flat_keys, get_cfg, plain
from pretrain.encoders import Encoder
from pretrain.loop import Loop, Parts
from pretrain.methods import VIEWS, Method, build_method
from pretrain.probe.knn import KnnMonitor

logger = logging.getLogger(__name__)

# What may change between a run and its continuation without changing what is learned.
FREE_KEYS = {
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
}
FREE_ROOMS = ("KNN.",)  # measures, and does not teach


def train(cfg: CfgNode, *, resume: bool = False) -> Path:
    """Pre-train as `cfg` says; returns the path of OUTPUT_DIR/checkpoint.pth.

    With `resume`, continues from the newest whole checkpoint of OUTPUT_DIR, or starts where there
    is none; a finished run returns at once. Under torchrun every process calls this, and the main
    one writes. Raises InputError for bad input, before anything is written where that is possible.
    """
    check(cfg)
    device = pick_device(cfg.DEVICE)
    with torchrun_group(torchrun_process(), device.type):
        try:
            return _train(cfg, device, resume=resume)
        except KeyboardInterrupt:
            if collectives.is_main():
                logger.info("%s", what_is_kept(Path(cfg.OUTPUT_DIR), cfg.CHECKPOINT_EVERY))
            raise


def what_is_kept(folder: Path, every: int) -> str:
    """What `resume` finds of a run that was stopped."""
    found = checkpoints.in_folder(folder)
    if found:
        return f"--resume goes on from {found[0]}"
    return f"no checkpoint yet (CHECKPOINT_EVERY {every}): --resume starts from the start"


def _train(cfg: CfgNode, device: torch.device, *, resume: bool) -> Path:
    folder = Path(cfg.OUTPUT_DIR)
    found = _found(cfg, folder, resume=resume)
    if found is not None and found[0].name == checkpoints.FINAL:
        logger.info("%s is finished already", found[0])
        return found[0]
    try:
        parts = build_parts(cfg, device, _precision(cfg, device, found))
    except Exception as error:
        told = _told(cfg, error)
        if told is None:
            raise
        raise told from told.__cause__
    fresh = not folder.exists()
    loop = Loop(cfg, parts, folder=folder)
    if found is not None:
        loop.restore(found[1], found[0])
    with ExitStack() as stack:
        try:
            writers = _open_folder(cfg, folder, upto=loop.iteration) if loop.main else []
            for writer in writers:
                stack.callback(writer.close)
            _announce(cfg, parts)
            return loop.go(writers)
        except Exception as error:
            told = _told(cfg, error)
            if told is None:
                raise
            if fresh and loop.main and loop.iteration == 0:  # nothing was learnt: nothing is left
                shutil.rmtree(folder, ignore_errors=True)
            raise told from told.__cause__


def _told(cfg: CfgNode, error: Exception) -> InputError | None:
    """What of an error the user can mend, None for a fault of the program."""
    if isinstance(error, InputError):
        return error
    if cfg.COMPILE and type(error).__module__.startswith("torch._"):
        first = str(error).strip().partition("\n")[0]
        told = InputError(f"COMPILE is True and torch.compile failed ({first}): set COMPILE False")
        told.__cause__ = error
        return told
    if _is_shortage(error):
        first = str(error).strip().partition("\n")[0]
        told = InputError(
            f"memory has run out ({first}): lower SOLVER.BATCH, the number of negatives or "
            "AUGMENT.SIZE; moco-det plan says what a run needs"
        )
        told.__cause__ = error
        return told
    return None


def _is_shortage(error: Exception) -> bool:
    """Whether a host's or a device's memory was not enough; torch has no class for a host's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def build_parts(cfg: CfgNode, device: torch.device, bfloat16: bool) -> Parts:
    """Data, method and neighbours of a run, on their device."""
    torch.manual_seed(cfg.SEED)
    source = data.open_data(
        cfg.DATA.PATH,
        recipe=augment.recipe(cfg.AUGMENT.RECIPE, min_scale=cfg.AUGMENT.MIN_SCALE),
        size=cfg.AUGMENT.SIZE,
        views=VIEWS[cfg.METHOD],
        seed=cfg.SEED,
        batch=cfg.SOLVER.BATCH,
        shorter_side=cfg.DATA.SHORTER_SIDE,
        cache_mb=cfg.DATA.CACHE_MB,
        images=cfg.DATA.IMAGES,
        shuffle_buffer=cfg.DATA.SHUFFLE_BUFFER,
        max_corrupt=cfg.DATA.MAX_CORRUPT,
        strict=cfg.DATA.STRICT,
        on_device=device if cfg.DATA.ON_DEVICE else None,
    )
    check_shares(cfg)
    knn = None
    if cfg.KNN.TRAIN and collectives.is_main():
        knn = KnnMonitor(
            cfg.KNN.TRAIN,
            cfg.KNN.TEST,
            size=cfg.KNN.SIZE or cfg.AUGMENT.SIZE,
            k=cfg.KNN.K,
            temperature=cfg.KNN.T,
            features=cfg.KNN.FEATURES,
            bfloat16=bfloat16,
        )
    method = build_method(
        cfg,
        images=source.images if source.numbered else None,
        classes=source.classes,
        bfloat16=bfloat16,
    )
    method.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    method.train()
    captured = cfg.COMPILE and device.type == "cuda" and collectives.world_size() == 1
    if cfg.COMPILE and not captured:
        _compile(method)
    steps = data.steps_per_epoch(source.images, cfg.SOLVER.BATCH)
    total = cfg.SOLVER.MAX_ITER or cfg.SOLVER.EPOCHS * steps
    return Parts(method, source, device, bfloat16, total, knn, captured)


def check_shares(cfg: CfgNode) -> None:
    """Refuse parts of a batch that would give batch norm other groups than the whole has."""
    share = data.share_of(cfg.SOLVER.BATCH, collectives.world_size())
    splits = cfg.ENCODER.BN_SPLITS // collectives.world_size()
    if cfg.SOLVER.ACCUMULATE > 1 and share % max(splits, 1):
        raise InputError(
            f"SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}: the {share} images of a process do not "
            f"divide into its {splits} sub-batches of batch norm, so the parts would have other "
            "ones; choose SOLVER.BATCH as a multiple of ENCODER.BN_SPLITS"
        )


def _compile(method: Method) -> None:
    for child in method.children():
        if isinstance(child, Encoder):
            child.trunk.compile()


def _precision(
    cfg: CfgNode, device: torch.device, found: tuple[Path, dict[str, Any]] | None
) -> bool:
    """Whether to compute in bfloat16: as the run has begun, else as PRECISION says."""
    wanted = use_bfloat16(cfg.PRECISION, device)
    begun = None if found is None else found[1]["state"].get("bfloat16")
    if begun is None or begun == wanted:
        return wanted
    name = "bfloat16" if begun else "float32"
    if cfg.PRECISION != "auto":
        assert found is not None
        raise InputError(
            f"PRECISION is {cfg.PRECISION} and {found[0]} was trained in {name}: go on in that"
        )
    logger.info("PRECISION auto goes on in %s, as the run began", name)
    return bool(begun)


def _found(cfg: CfgNode, folder: Path, *, resume: bool) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint to go on from, read by the main process for all; None for a new run."""
    if not collectives.is_main():
        return _on_all(None)
    try:
        if not resume and checkpoints.in_folder(folder):
            raise InputError(
                f"OUTPUT_DIR {folder} holds a run already: resume it (--resume) or name another"
            )
        found = checkpoints.newest(folder) if resume else None
        if found is not None:
            _same_config(cfg, found[1], found[0])
    except InputError as error:
        return _on_all(error)
    return _on_all(found)


def _on_all(thing: Any) -> Any:
    """The main process's `thing`, on all; an error is raised on all."""
    thing = collectives.from_main(thing)
    if isinstance(thing, InputError):
        raise thing
    return thing


def _open_folder(cfg: CfgNode, folder: Path, *, upto: int) -> list[recording.Writer]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
        return recording.open_writers(
            folder,
            upto=upto,
            tensorboard=cfg.TENSORBOARD,
            wandb=cfg.WANDB,
            config=plain(cfg),
        )
    except OSError as error:
        raise InputError(f"cannot write OUTPUT_DIR {folder}: {error.strerror}") from error


def _announce(cfg: CfgNode, parts: Parts) -> None:
    if not collectives.is_main():
        return
    method, images, batch = parts.method, parts.source.images, cfg.SOLVER.BATCH
    world = collectives.world_size()
    logger.info(
        "pretrain: torch %s on %s, %d process%s, %s; %s %s, %d images, %d iterations of %d",
        torch.__version__,
        parts.device.type,
        world,
        "es" if world > 1 else "",
        "bfloat16" if parts.bfloat16 else "float32",
        method.name,
        cfg.ENCODER.ARCH,
        images,
        parts.total,
        batch,
    )
    if cfg.COMPILE:
        how = "a CUDA graph" if parts.captured else "torch.compile over the encoders"
        logger.info("COMPILE: %s", how)
    for line in method.notes():
        logger.info("%s", line)
    for line in method.warnings(batch=batch, images=images):
        logger.warning("%s", line)


def _same_config(cfg: CfgNode, content: dict[str, Any], path: Path) -> None:
    # an older version's run has none of the later keys, and goes on with their defaults
    before = {**flat_keys(get_cfg()), **flat_keys(CfgNode(content["config"]))}
    now = flat_keys(cfg)
    differ = [
        f"{key} ({before.get(key)} then, {now.get(key)} now)"
        for key in sorted(before.keys() | now.keys())
        if key not in FREE_KEYS
        and not key.startswith(FREE_ROOMS)
        and before.get(key) != now.get(key)
    ]
    if differ:
        raise InputError(f"{path} was made with another config: {', '.join(differ)}")
