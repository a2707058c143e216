"""Pre-training over time: batches, steps, learning rate, logs, checkpoints."""

from __future__ import annotations

import itertools
import logging
import math
import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pretrain import augment, checkpoints, data, watch
from pretrain.config import CfgNode, check, flat_keys, plain
from pretrain.errors import InputError
from pretrain.methods import VIEWS, Batch, Method, MoCo, build_method

logger = logging.getLogger(__name__)

# What may change between a run and its continuation without changing what is learned.
FREE_KEYS = {
    "OUTPUT_DIR",
    "DEVICE",
    "DATA.PATH",
    "DATA.WORKERS",
    "DATA.CACHE_MB",
    "DATA.STRICT",
    "DATA.MAX_CORRUPT",
    "CHECKPOINT_EVERY",
}


def learning_rate(
    step: int, *, base: float, total: int, schedule: str, milestones: Sequence[int], gamma: float
) -> float:
    """The rate of step 0..total-1, steps counted in whatever unit `total` is in.

    cosine: base * (1 + cos(pi * step / total)) / 2 (MoCo v2, Section 3); step: times gamma at
    each milestone passed (MoCo v1, Section 4).
    """
    if schedule == "cosine":
        return base * 0.5 * (1.0 + math.cos(math.pi * step / total))
    return base * gamma ** sum(step >= milestone for milestone in milestones)


def pick_device(name: str) -> torch.device:
    """The device of a DEVICE key; InputError where CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError("DEVICE is cuda and torch sees no GPU: use DEVICE cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether a PRECISION key means bfloat16 autocast on this device.

    `auto` takes it where it is faster: GPUs with bf16 units, CPUs with matrix tiles (AMX) or ARM's
    bf16. With AVX-512 bf16 alone a step is slower than in float32, so it is left to the user.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return platform.machine() not in ("x86_64", "AMD64") or torch.cpu._is_amx_tile_supported()


def train(cfg: CfgNode, *, resume: bool = False) -> Path:
    """Pre-train as `cfg` says; returns the path of OUTPUT_DIR/checkpoint.pth.

    With `resume`, continues from the newest whole checkpoint of OUTPUT_DIR, or starts where there
    is none; a finished run returns at once. Raises InputError for bad input, before anything is
    written where that is possible.
    """
    check(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    if not resume and checkpoints.in_folder(folder):
        raise InputError(
            f"OUTPUT_DIR {folder} holds a run already: resume it (--resume) or name another"
        )
    found = checkpoints.newest(folder) if resume else None
    if found is not None:
        _same_config(cfg, found[1], found[0])
        if found[0].name == checkpoints.FINAL:
            logger.info("%s is finished already", found[0])
            return found[0]

    device = pick_device(cfg.DEVICE)
    bfloat16 = use_bfloat16(cfg.PRECISION, device)
    torch.manual_seed(cfg.SEED)
    corrupt, views = _open_data(cfg)
    images = views.images
    classes = None if images.labels is None else len(images.classes)
    method = build_method(cfg, classes=classes, bfloat16=bfloat16)
    method.to(device).to(memory_format=torch.channels_last).train()
    steps = data.steps_per_epoch(len(images), cfg.SOLVER.BATCH)
    total = cfg.SOLVER.MAX_ITER or cfg.SOLVER.EPOCHS * steps

    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(cfg.dump(), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write OUTPUT_DIR {folder}: {error.strerror}") from error
    _announce(cfg, method, len(images), total, device, bfloat16)
    run = _Run(cfg, method, folder=folder, device=device, images=len(images), total=total)
    if found is not None:
        run.restore(found[1], found[0])
    try:
        return run.go(views, corrupt)
    except InputError:
        if fresh and run.iteration == 0:  # nothing was learnt: nothing is left
            shutil.rmtree(folder)
        raise


class _Run:
    """The loop and what it carries from step to step."""

    def __init__(
        self,
        cfg: CfgNode,
        method: Method,
        *,
        folder: Path,
        device: torch.device,
        images: int,
        total: int,
    ) -> None:
        self.cfg = cfg
        self.method = method
        self.folder = folder
        self.device = device
        self.images = images
        self.total = total
        self.steps = data.steps_per_epoch(images, cfg.SOLVER.BATCH)
        self.iteration = 0  # steps done
        self.last_good: Path | None = None
        self.sums: dict[str, Tensor] = {}
        self.optimizer = torch.optim.SGD(
            [p for p in method.parameters() if p.requires_grad],
            lr=cfg.SOLVER.LR,
            momentum=cfg.SOLVER.MOMENTUM,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            fused=True,
        )

    def go(self, views: data.ViewSet, corrupt: data.CorruptCount) -> Path:
        """Run to the end of the budget; returns the final checkpoint."""
        cfg, method = self.cfg, self.method
        metrics = watch.MetricsFile(self.folder / "metrics.jsonl", upto=self.iteration)
        queue = method.dictionary.size if isinstance(method, MoCo) else 0
        watcher = watch.Watch(method.chance_loss, after=max(100, 2 * queue // cfg.SOLVER.BATCH))
        order = data.Order(
            self.images, cfg.SOLVER.BATCH, seed=cfg.SEED, start=self.iteration, stop=self.total
        )
        pin = self.device.type == "cuda"
        loader = data.make_loader(views, order, workers=cfg.DATA.WORKERS, pin=pin)
        bar = tqdm(
            total=self.total, initial=self.iteration, desc=method.name, unit="step", mininterval=1
        )
        clock, waited, counted = time.perf_counter(), 0.0, 0
        with bar:
            asked = time.perf_counter()
            for raw in loader:
                waited += time.perf_counter() - asked
                for path, reason in raw.bad:
                    corrupt.add(path, reason)
                self._step(raw)
                counted += len(raw.indices)
                bar.update()
                logs = self.iteration % cfg.LOG_EVERY == 0 or self.iteration == self.total
                saves = self.iteration % cfg.CHECKPOINT_EVERY == 0
                # On a GPU reading the loss waits for the device, so it is read only when needed.
                if logs or saves or self.device.type == "cpu":
                    self._check_finite()
                if logs:
                    now = time.perf_counter()
                    record = self._record(counted / (now - clock), waited / (now - clock))
                    clock, waited, counted = now, 0.0, 0
                    warning = watcher.look(record)
                    if warning:
                        logger.warning("iteration %d: %s", self.iteration, warning)
                        record["warning"] = warning
                    metrics.write(record)
                    bar.set_postfix(
                        loss=f"{record['loss']:.3f}", acc=f"{record['accuracy']:.1f}", refresh=False
                    )
                if saves and self.iteration < self.total:
                    self._save(checkpoints.periodic_path(self.folder, self.iteration))
                asked = time.perf_counter()
        return self._save(self.folder / checkpoints.FINAL)

    def _step(self, raw: data.RawBatch) -> None:
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pixels = raw.pixels.to(self.device, non_blocking=True)  # N x V x S x S x 3
        labels = raw.labels.to(self.device, non_blocking=True)
        batch = Batch(
            tuple(augment.normalise(view) for view in pixels.unbind(dim=1)),
            raw.indices.to(self.device, non_blocking=True),
            labels,
        )
        loss, metrics = self.method.loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.method.after_step()
        self.iteration += 1
        for name, value in itertools.chain(
            [("loss", loss.detach()), ("steps", torch.ones_like(loss.detach()))], metrics.items()
        ):
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _rate(self) -> float:
        solver = self.cfg.SOLVER
        step, total, unit = self.iteration, self.total, 1
        if solver.EPOCHS:  # milestones are in epochs
            unit = self.steps
        if solver.LR_UPDATE == "epoch":
            step = step // self.steps * self.steps
        return learning_rate(
            step,
            base=solver.LR,
            total=total,
            schedule=solver.SCHEDULE,
            milestones=[milestone * unit for milestone in solver.MILESTONES],
            gamma=solver.GAMMA,
        )

    def _check_finite(self) -> None:
        if not math.isfinite(float(self.sums["loss"])):
            where = f"the last good checkpoint is {self.last_good}"
            if self.last_good is None:
                where = "no checkpoint was written yet"
            raise InputError(
                f"the loss is not finite at iteration {self.iteration}: {where}; lower SOLVER.LR "
                f"{self.cfg.SOLVER.LR:g}, or try PRECISION float32"
            )

    def _record(self, images_per_second: float, wait: float) -> dict[str, Any]:
        """The means since the last record, which start anew."""
        steps = float(self.sums.pop("steps"))
        means = {name: round(float(value) / steps, 6) for name, value in self.sums.items()}
        self.sums = {}
        record = {
            "iteration": self.iteration,
            "epoch": round(self.iteration / self.steps, 4),
            **means,
            "chance_loss": round(self.method.chance_loss, 6),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": round(images_per_second, 1),
            "data_wait": round(wait, 4),
        }
        if isinstance(self.method, MoCo):
            record["queue_fill"] = round(self.method.dictionary.fill, 4)
        return record

    def _save(self, path: Path) -> Path:
        state = {
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "total": self.total,
            "images": self.images,
            "rng": {"torch": torch.get_rng_state()},
            "sums": {name: value.cpu() for name, value in self.sums.items()},
        }
        content = checkpoints.pack(
            self.method, arch=self.cfg.ENCODER.ARCH, config=plain(self.cfg), state=state
        )
        checkpoints.save(content, path)
        checkpoints.prune(self.folder)
        self.last_good = path
        return path

    def restore(self, content: dict[str, Any], path: Path) -> None:
        """Continue from a checkpoint's content."""
        state = content["state"]
        if state["images"] != self.images:
            raise InputError(
                f"{path} was trained on {state['images']} images and DATA.PATH "
                f"{self.cfg.DATA.PATH} has {self.images}: resume needs the same images"
            )
        checkpoints.unpack(self.method, content)
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        torch.set_rng_state(state["rng"]["torch"])
        self.last_good = path
        logger.info("resumed from %s at iteration %d of %d", path, self.iteration, self.total)


def _open_data(cfg: CfgNode) -> tuple[data.CorruptCount, data.ViewSet]:
    images = data.list_images(cfg.DATA.PATH)
    corrupt = data.CorruptCount(len(images), max_share=cfg.DATA.MAX_CORRUPT, strict=cfg.DATA.STRICT)
    cache = None
    if cfg.DATA.CACHE_MB:
        images, cache = data.cache_images(
            images,
            budget_mb=cfg.DATA.CACHE_MB,
            shorter_side=cfg.DATA.SHORTER_SIDE,
            corrupt=corrupt,
        )
    views = data.ViewSet(
        images,
        recipe=augment.recipe(cfg.AUGMENT.RECIPE, min_scale=cfg.AUGMENT.MIN_SCALE),
        size=cfg.AUGMENT.SIZE,
        views=VIEWS[cfg.METHOD],
        seed=cfg.SEED,
        shorter_side=cfg.DATA.SHORTER_SIDE,
        cache=cache,
    )
    return corrupt, views


def _announce(
    cfg: CfgNode, method: Method, images: int, total: int, device: torch.device, bfloat16: bool
) -> None:
    splits = max(1, cfg.ENCODER.BN_SPLITS)
    logger.info(
        "pretrain: torch %s on %s, %s; %s %s, %d images, %d iterations of %d",
        torch.__version__,
        device.type,
        "bfloat16" if bfloat16 else "float32",
        method.name,
        cfg.ENCODER.ARCH,
        images,
        total,
        cfg.SOLVER.BATCH,
    )
    if images < cfg.SOLVER.BATCH:
        logger.warning(
            "%d images are fewer than SOLVER.BATCH %d: a batch holds images more than once",
            images,
            cfg.SOLVER.BATCH,
        )
    if isinstance(method, MoCo):
        active = (
            "on" if method.shuffle and splits > 1 else "off: keys share their query's statistics"
        )
        logger.info("shuffling BN over %d sub-batches: %s", splits, active)
        for line in watch.queue_warnings(
            method.dictionary.size, cfg.SOLVER.BATCH, method.momentum, images
        ):
            logger.warning("%s", line)


def _same_config(cfg: CfgNode, content: dict[str, Any], path: Path) -> None:
    before, now = flat_keys(CfgNode(content["config"])), flat_keys(cfg)
    differ = [
        f"{key} ({before.get(key)} then, {now.get(key)} now)"
        for key in sorted(before.keys() | now.keys())
        if key not in FREE_KEYS and before.get(key) != now.get(key)
    ]
    if differ:
        raise InputError(f"{path} was made with another config: {', '.join(differ)}")
