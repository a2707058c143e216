"""The steps of a run, and what is carried from one to the next."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from moco_det.foundation import collectives
from moco_det.foundation.errors import InputError
from pretrain import augment, checkpoints, data
from pretrain.capture import CapturedStep, Compute
from pretrain.config import CfgNode, plain
from pretrain.encoders import Encoder
from pretrain.methods import Batch, Method, Outcome
from pretrain.recording import Writer
from pretrain.schedule import rate_of
from pretrain.watch import Watch, knn_gain, what_to_try

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """What `build_parts` made for a run."""

    method: Method
    source: data.Source
    device: torch.device
    bfloat16: bool
    total: int  # iterations of the whole run
    # Which labelled pictures a vote of neighbours gets right; of the main process.
    knn: Callable[[Encoder], Tensor] | None = None
    captured: bool = False  # the steps are one CUDA graph


class Loop:
    """Steps `iteration` to `total`: the order of a step is in `_step` and in `Method`."""

    def __init__(self, cfg: CfgNode, parts: Parts, *, folder: Path) -> None:
        self.cfg = cfg
        self.method = parts.method
        self.source = parts.source
        self.device = parts.device
        self.bfloat16 = parts.bfloat16
        self.total = parts.total
        self.knn = parts.knn
        self.folder = folder
        self.main = collectives.is_main()
        self.steps = data.steps_per_epoch(self.source.images, cfg.SOLVER.BATCH)
        self.knn_every = max(1, round(cfg.KNN.EVERY * self.steps)) if cfg.KNN.EVERY else 0
        self.iteration = 0  # steps done
        self.last_good: Path | None = None
        self.sums: dict[str, Tensor] = {}
        # While a queue still holds its random start, the loss is low for the wrong reason.
        filled = 2 * (self.method.dictionary_size or 0) // cfg.SOLVER.BATCH
        ways_out = what_to_try(
            cfg.METHOD,
            batch=cfg.SOLVER.BATCH,
            size=cfg.MOCO.K,
            momentum=cfg.MOCO.M,
            splits=cfg.ENCODER.BN_SPLITS,
        )
        self.watch = Watch(self.method.chance_loss, after=max(100, filled), ways_out=ways_out)
        self.random_hits: Tensor | None = None  # of the same network's random weights
        self.optimizer = torch.optim.SGD(
            [p for p in self.method.parameters() if p.requires_grad],
            lr=cfg.SOLVER.LR,
            momentum=cfg.SOLVER.MOMENTUM,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            fused=True,
        )
        self.parallel = collectives.parallel(self.method)
        self.compute: Compute = self._compute
        self.rate: Tensor | None = None  # where a captured step reads it
        if parts.captured:
            self.compute = CapturedStep(self._compute, settled=lambda: self.method.settled)
            self.rate = torch.zeros((), device=self.device)

    def go(self, writers: Sequence[Writer]) -> Path:
        """Run to the end of the budget or to KNN.GOAL; returns the final checkpoint."""
        cfg = self.cfg
        loader = self.source.make_loader(
            batch=cfg.SOLVER.BATCH,
            start=self.iteration,
            stop=self.total,
            rank=collectives.rank(),
            world=collectives.world_size(),
            workers=cfg.DATA.WORKERS,
            pin=self.device.type == "cuda",
        )
        clock = _Clock()
        with (
            tqdm(
                total=self.total,
                initial=self.iteration,
                desc=self.method.name,
                unit="step",
                mininterval=1,
                disable=not self.main,
            ) as bar,
            data.worker_errors(),
            logging_redirect_tqdm(),
        ):
            if self.iteration == 0:
                self._neighbours(writers)
            clock.start()
            for raw in clock.waiting_for(loader):
                self._step(raw)
                clock.images += cfg.SOLVER.BATCH
                bar.update()
                last = self.iteration == self.total
                watches = last or (self.knn_every and self.iteration % self.knn_every == 0)
                # A watched step is logged: the interval whose rate is logged ends before the watch.
                logs = self.iteration % cfg.LOG_EVERY == 0 or watches
                saves = self.iteration % cfg.CHECKPOINT_EVERY == 0 and self.iteration < self.total
                # On a GPU reading the loss waits for the device, so it is read only when needed.
                if logs or saves or self.device.type == "cpu":
                    self._check_finite()
                if logs:
                    self._log(writers, bar, clock)
                if watches:
                    with clock.stopped():
                        accuracy = self._neighbours(writers)
                    if cfg.KNN.GOAL and collectives.from_main(accuracy) >= cfg.KNN.GOAL:
                        logger.info("KNN.GOAL %g is reached: the run ends here", cfg.KNN.GOAL)
                        break
                if saves:
                    self._save(checkpoints.periodic_path(self.folder, self.iteration))
        return self._save(self.folder / checkpoints.FINAL)

    def _step(self, raw: data.RawBatch) -> None:
        self._set_rate()
        pixels = raw.pixels.to(self.device, non_blocking=True)  # n x V x S x S x 3
        batch = Batch(
            tuple(augment.normalise(view) for view in pixels.unbind(dim=1)),
            raw.indices.to(self.device, non_blocking=True),
            raw.labels.to(self.device, non_blocking=True),
        )
        for name, value in self.compute(batch).items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.iteration += 1

    def _set_rate(self) -> None:
        rate = rate_of(self.cfg, self.iteration, total=self.total, steps=self.steps)
        if self.rate is not None:
            self.rate.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate if self.rate is None else self.rate

    def _compute(self, batch: Batch) -> dict[str, Tensor]:
        """What the device does in a step; loss and metrics, and a one that counts the step."""
        keys = self.method.prepare(batch)
        self.optimizer.zero_grad(set_to_none=True)
        outcomes = self._forward_and_backward(batch, keys)
        self.optimizer.step()
        features = torch.cat([one.features for one in outcomes])
        self.method.after_step(batch.indices, features)
        rows = [{"loss": one.loss.detach(), **one.metrics} for one in outcomes]
        means = {name: torch.stack([row[name] for row in rows]).mean(dim=0) for name in rows[0]}
        return {**means, "steps": torch.ones_like(means["loss"])}

    def _forward_and_backward(self, batch: Batch, keys: Tensor | None) -> list[Outcome]:
        parts = self.method.parts
        size = len(batch.indices) // parts
        outcomes = []
        for number in range(parts):
            rows = slice(number * size, (number + 1) * size)
            part = batch if parts == 1 else batch.part(rows.start, rows.stop)
            own = keys if keys is None or parts == 1 else keys[rows]
            if isinstance(self.parallel, DistributedDataParallel) and number + 1 < parts:
                with self.parallel.no_sync():  # the last part sends the sum of all gradients
                    outcome = self.parallel(part, own)
                    (outcome.loss / parts).backward()
            else:
                outcome = self.parallel(part, own)
                (outcome.loss / parts).backward()
            outcomes.append(outcome)
        return outcomes

    def _check_finite(self) -> None:
        # All processes see the same sum, and stop at the same step.
        if not math.isfinite(float(collectives.mean(self.sums["loss"]))):
            where = f"the last good checkpoint is {self.last_good}"
            if self.last_good is None:
                where = "no checkpoint was written yet"
            raise InputError(
                f"the loss is not finite at iteration {self.iteration}: {where}; lower SOLVER.LR "
                f"{self.cfg.SOLVER.LR:g}, or try PRECISION float32"
            )

    def _log(self, writers: Sequence[Writer], bar: tqdm[Any], clock: _Clock) -> None:
        record = self._record(*clock.read())
        warning = self.watch.look(record)
        if warning and self.main:
            logger.warning("iteration %d: %s", self.iteration, warning)
        if warning:
            record["warning"] = warning
        for writer in writers:
            writer.write(record)
        bar.set_postfix(
            loss=f"{record['loss']:.3f}", acc=f"{record['accuracy']:.1f}", refresh=False
        )

    def _record(self, images_per_second: float, wait: float) -> dict[str, Any]:
        """The means since the last record, over all processes; they start anew."""
        names = list(self.sums)
        sums = collectives.mean(torch.stack([self.sums[name].float() for name in names])).tolist()
        self.sums = {}
        steps = sums[names.index("steps")]
        means = {
            name: round(value / steps, 6)
            for name, value in zip(names, sums, strict=True)
            if name != "steps"
        }
        return {
            "iteration": self.iteration,
            "epoch": round(self.iteration / self.steps, 4),
            **means,
            "chance_loss": round(self.method.chance_loss, 6),
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            "images_per_second": round(images_per_second, 1),
            "data_wait": round(wait, 4),
            **{name: round(value, 6) for name, value in self.method.gauges().items()},
        }

    def _neighbours(self, writers: Sequence[Writer]) -> float:
        """Measure, record and return kNN accuracy, in the main process, where it is asked for."""
        if self.knn is None:
            return 0.0
        hits = self.knn(self.method.encoder)
        if self.random_hits is None:
            self.random_hits = hits
        gain = knn_gain(self.random_hits, hits)
        last = self.iteration == self.total
        record: dict[str, Any] = {
            "iteration": self.iteration,
            "epoch": round(self.iteration / self.steps, 4),
            **gain.record(),
        }
        warning = self.watch.look_at_knn(self.iteration, gain, last=last)
        if self.iteration == 0:
            logger.info("iteration 0: kNN of random weights %.1f %%", gain.random)
        else:
            logger.info(
                "iteration %d: kNN %.1f %%, random weights %.1f %% (up to %.1f points are chance)",
                self.iteration,
                gain.accuracy,
                gain.random,
                gain.margin,
            )
        if last and not warning:
            logger.info("the encoder ended better than its random weights by %.1f", gain.points)
        if warning:
            logger.warning("iteration %d: %s", self.iteration, warning)
            record["warning"] = warning
        for writer in writers:
            writer.write(record)
        return gain.accuracy

    def _save(self, path: Path) -> Path:
        self.last_good = path
        # Every process goes on with what a resumed one would read.
        self.sums = {name: collectives.mean(value) for name, value in self.sums.items()}
        if not self.main:
            return path
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"])
        rng: dict[str, Tensor] = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        state = {
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "total": self.total,
            "data": self.source.identity(collectives.world_size()),
            "bfloat16": self.bfloat16,
            "corrupt": self.source.corrupt.state(),
            "watch": self.watch.state(),
            "rng": rng,
            "sums": {name: value.cpu() for name, value in self.sums.items()},
        }
        content = checkpoints.pack(
            self.method, arch=self.cfg.ENCODER.ARCH, config=plain(self.cfg), state=state
        )
        checkpoints.save(content, path)
        checkpoints.prune(self.folder)
        return path

    def restore(self, content: dict[str, Any], path: Path) -> None:
        """Continue from a checkpoint's content; InputError where its data are not these."""
        state = content["state"]
        if "data" not in state:
            raise InputError(f"{path} was written by an older version, which it needs to go on")
        now = self.source.identity(collectives.world_size())
        for name in sorted(now.keys() | state["data"].keys()):
            if state["data"].get(name) != now.get(name):
                raise InputError(
                    f"{path} was trained with {state['data'].get(name)} {name} and DATA.PATH "
                    f"{self.cfg.DATA.PATH} has {now.get(name)}: resume needs the same {name}"
                )
        if self.knn is not None:  # the network still has the weights that the run started from
            self.random_hits = self.knn(self.method.encoder)
        checkpoints.unpack(self.method, content)
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = state["iteration"]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.source.corrupt.restore(state["corrupt"])
        self.watch.restore(state["watch"])
        torch.set_rng_state(state["rng"]["torch"])
        if self.device.type == "cuda" and "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        self.last_good = path
        logger.info("resumed from %s at iteration %d of %d", path, self.iteration, self.total)


class _Clock:
    """Images a second, and the share of the time that was spent waiting for data."""

    def __init__(self) -> None:
        self.images = 0
        self.waited = 0.0
        self.since = 0.0

    def start(self) -> None:
        """Begin an interval."""
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()

    def read(self) -> tuple[float, float]:
        """Both numbers of the interval, which ends here."""
        spent = max(time.perf_counter() - self.since, 1e-9)
        numbers = self.images / spent, self.waited / spent
        self.start()
        return numbers

    def waiting_for(self, loader: Iterable[data.RawBatch]) -> Iterator[data.RawBatch]:
        """The batches, with the time until each one is there counted as waited."""
        batches = iter(loader)
        while True:
            asked = time.perf_counter()
            raw = next(batches, None)
            if raw is None:
                return
            self.waited += time.perf_counter() - asked
            yield raw

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done within does not count."""
        before = time.perf_counter()
        yield
        self.since += time.perf_counter() - before
