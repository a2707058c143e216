"""The steps of a run, and what is carried from one to the next."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from moco_det.foundation import collectives
from moco_det.foundation.checkpoints import restore_optimizer, restoring, save_checkpoint
from moco_det.foundation.errors import InputError
from moco_det.foundation.metrics_file import Writer
from moco_det.foundation.stopping import Stopped
from pretrain import augment, checkpoints, data
from pretrain.capture import CapturedStep, Compute
from pretrain.config import PretrainConfig
from pretrain.encoders import Encoder
from pretrain.methods.base import Batch, Method, MethodOutput
from pretrain.schedule import make_schedule
from pretrain.watch import Watch, knn_gain

logger = logging.getLogger(__name__)


@dataclass
class _Clock:
    """Images per second, and the share of the time that was spent waiting for data."""

    images: int = 0
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)

    def read(self) -> dict[str, float]:
        """Both numbers of the interval since the clock was made, for a record."""
        spent = max(time.perf_counter() - self.since, 1e-9)
        return {
            "images_per_second": round(self.images / spent, 1),
            "data_wait": round(self.waited / spent, 4),
        }


@dataclass
class Loop:
    """The steps of a run: the order of one is in `compute_step` and in `Method`."""

    cfg: PretrainConfig
    method: Method
    source: data.Source
    optimizer: torch.optim.Optimizer
    watch: Watch
    # Which labelled pictures a vote of neighbours gets right; of the main process.
    knn: Callable[[Encoder], Tensor] | None
    device: torch.device
    begun_by: int  # processes

    def __post_init__(self) -> None:
        solver = self.cfg.SOLVER
        self.epoch_steps = steps = data.steps_per_epoch(self.source.images, solver.BATCH)
        self.total = solver.MAX_ITER or solver.EPOCHS * steps  # iterations of the whole run
        self.rate_of = make_schedule(solver, total=self.total, steps=steps)
        self.iteration = 0  # steps done
        self.sums: dict[str, Tensor] = {}  # since the last record
        self.unmeasured = True  # kNN is due before the next step
        self.last_good: Path | None = None
        self.random_hits: Tensor | None = None  # of the same network's random weights
        self.parallel = collectives.parallel(self.method)
        self.compute: Compute = self._compute
        self.rate: Tensor | None = None  # where a captured step reads it
        self.clock = _Clock()
        self.writers: list[Writer] = []  # of the main process alone

    def capture(self) -> None:
        """Let the steps be one CUDA graph."""
        self.compute = CapturedStep(self._compute, settled=lambda: self.method.settled)
        self.rate = torch.zeros((), device=self.device)

    def go(self) -> None:
        """Run to the end of the budget or to KNN.GOAL, with periodic checkpoints.

        Where a signal asks for it: Stopped on all processes, with a checkpoint, after the step.
        """
        try:
            self._run()
        except Stopped:
            name = checkpoints.periodic_name(self.iteration)
            if self.last_good != Path(self.cfg.OUTPUT_DIR) / name:
                self.last_good = self.save(name)
            raise

    def _run(self) -> None:
        loader = self.source.make_loader(
            batch=self.cfg.SOLVER.BATCH,
            start=self.iteration,
            stop=self.total,
            rank=collectives.rank(),
            world=collectives.world_size(),
            streams=self.begun_by,
            workers=self.cfg.DATA.WORKERS,
            pin=self.device.type == "cuda",
        )
        batches = iter(loader)
        every = self.cfg.KNN.EVERY  # epochs
        knn_every = max(1, round(every * self.epoch_steps)) if every else self.total
        agreement = collectives.Agreement(self.device)
        with (
            tqdm(
                total=self.total,
                initial=self.iteration,
                desc=self.method.name,
                unit="step",
                mininterval=1,
                disable=not collectives.is_main(),
            ) as bar,
            data.worker_errors(),
            logging_redirect_tqdm(),
        ):
            reached = self.unmeasured and self._measure_neighbours() and self.iteration > 0
            self.clock = _Clock()
            while self.iteration < self.total and not reached:
                asked = time.perf_counter()
                raw = next(batches)
                self.clock.waited += time.perf_counter() - asked
                self._step(raw)
                bar.update()
                stop = agreement.asked()
                last = self.iteration == self.total
                watches = last or self.iteration % knn_every == 0
                # A watched step is logged: the interval whose rate is logged ends before the watch.
                logs = self.iteration % self.cfg.LOG_EVERY == 0 or watches
                saves = self.iteration % self.cfg.CHECKPOINT_EVERY == 0 and not last
                # On a GPU reading the loss waits for the device, so it is read only when needed.
                if logs or saves or stop or self.device.type == "cpu":
                    self._check_finite()
                if logs:
                    self._log(bar)
                if watches:
                    reached = self._measure_neighbours()
                    self.clock = _Clock()
                if saves and not reached:
                    self.last_good = self.save(checkpoints.periodic_name(self.iteration))
                if stop and not (last or reached):
                    raise Stopped(stop)
            if reached:
                logger.info("KNN.GOAL %g is reached: the run ends here", self.cfg.KNN.GOAL)

    def _step(self, raw: data.RawBatch) -> None:
        rate = self.rate_of(self.iteration)
        if self.rate is not None:
            self.rate.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate if self.rate is None else self.rate
        pixels = raw.pixels.to(self.device, non_blocking=True)  # n x V x S x S x 3
        batch = Batch(
            tuple(augment.normalise(view) for view in pixels.unbind(dim=1)),
            raw.indices.to(self.device, non_blocking=True),
            raw.labels.to(self.device, non_blocking=True),
        )
        for name, value in self.compute(batch).items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.iteration += 1
        self.clock.images += self.cfg.SOLVER.BATCH

    def _compute(self, batch: Batch) -> dict[str, Tensor]:
        return compute_step(self.method, self.parallel, self.optimizer, batch)

    def _check_finite(self) -> None:
        # All processes see the same sum, and stop at the same step.
        if not math.isfinite(float(collectives.mean(self.sums["loss"]))):
            raise InputError(
                f"the loss is not finite at iteration {self.iteration} (the last good checkpoint: "
                f"{self.last_good or 'none yet'}): lower SOLVER.LR, or try PRECISION float32"
            )

    def _log(self, bar: tqdm[Any]) -> None:
        """Record the means since the last record, over all processes; they start anew."""
        names = list(self.sums)
        sums = collectives.mean(torch.stack([self.sums[name].float() for name in names])).tolist()
        means = dict(zip(names, sums, strict=True))
        steps = means.pop("steps")
        self.sums = {}
        record: dict[str, Any] = {
            **{name: round(value / steps, 6) for name, value in means.items()},
            "chance_loss": round(self.method.chance_loss, 6),
            "lr": float(self.optimizer.param_groups[0]["lr"]),
            **self.clock.read(),
            **{name: round(value, 6) for name, value in self.method.gauges().items()},
        }
        self.clock = _Clock()
        self._write(record, self.watch.look({"iteration": self.iteration, **record}))
        bar.set_postfix(
            loss=f"{record['loss']:.3f}", acc=f"{record['accuracy']:.1f}", refresh=False
        )

    def _write(self, record: dict[str, Any], warning: str | None) -> None:
        if warning and collectives.is_main():
            logger.warning("iteration %d: %s", self.iteration, warning)
        if warning:
            record["warning"] = warning
        epoch = round(self.iteration / self.epoch_steps, 4)
        for writer in self.writers:
            writer({"iteration": self.iteration, "epoch": epoch, **record})

    def _measure_neighbours(self) -> bool:
        """Measure and record kNN accuracy where it is asked for; whether KNN.GOAL is reached.

        Stopped, on all processes, where a signal has come: then it is measured after the resume.
        """
        if not self.cfg.KNN.TRAIN:
            self.unmeasured = False
            return False
        self.unmeasured = True
        found: float | Stopped = 0.0
        if self.knn is not None:  # in the main process
            try:
                found = self._record_neighbours(self.knn(self.method.encoder))
            except Stopped as stop:
                found = stop
        found = collectives.from_main(found)
        if isinstance(found, Stopped):
            raise Stopped(found.number)
        self.unmeasured = False
        return 0 < self.cfg.KNN.GOAL <= found

    def _record_neighbours(self, hits: Tensor) -> float:
        if self.random_hits is None:
            self.random_hits = hits
        gain = knn_gain(self.random_hits, hits)
        last = self.iteration == self.total
        warning = self.watch.look_at_knn(self.iteration, gain, last=last)
        logger.info("iteration %d: %s", self.iteration, gain)
        if last and not warning:
            logger.info("the encoder ended better than its random weights by %.1f", gain.points)
        self._write(gain.record(), warning)
        return gain.accuracy

    def save(self, name: str) -> Path:
        """Write OUTPUT_DIR/`name`, in the main process; every process must call it."""
        path, state = Path(self.cfg.OUTPUT_DIR) / name, self.state()
        if collectives.is_main():
            save_checkpoint(checkpoints.pack(self.method, self.cfg, state), path)
            checkpoints.prune(path.parent)
        return path

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the method; every process must ask for it."""
        # Every process goes on with what a resumed one would read.
        self.sums = {name: collectives.mean(value) for name, value in self.sums.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"])
        rng: dict[str, Tensor] = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(self.device)
        return {
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
            "total": self.total,
            "unmeasured": self.unmeasured,
            "data": self.source.identity,
            "processes": self.begun_by,
            "bfloat16": self.method.use_bfloat16,
            "corrupt": self.source.corrupt.state(),
            "watch": self.watch.state(),
            "rng": rng,
            "sums": {name: value.cpu() for name, value in self.sums.items()},
        }

    def restore(self, content: dict[str, Any], path: Path) -> None:
        """Continue from a checkpoint's content; InputError where its data are not these."""
        state = content["state"]
        now, begun = self.source.identity, dict(state.get("data") or {})
        begun.pop("processes", None)  # of an older version
        if begun != now:
            then, here = (
                ", ".join(f"{value} {name}" for name, value in given.items())
                for given in (begun, now)
            )
            raise InputError(
                f"{path} was trained with {then or 'unknown data'} and DATA.PATH now has {here}: "
                "resume needs the same"
            )
        if self.knn is not None:  # the network still has the weights that the run started from
            self.random_hits = self.knn(self.method.encoder)
        with restoring(path):
            checkpoints.unpack(self.method, content)
            restore_optimizer(self.optimizer, state["optimizer"])
            self.iteration = state["iteration"]
            if not 0 <= self.iteration <= self.total:
                raise ValueError(f"it has {self.iteration} iterations")
            for group in self.optimizer.param_groups:  # that of the last step, which may be over
                group["lr"] = self.rate_of(max(0, self.iteration - 1))
            self.unmeasured = bool(state.get("unmeasured", False))
            self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
            self.source.corrupt.restore(state["corrupt"])
            self.watch.restore(state["watch"])
            torch.set_rng_state(state["rng"]["torch"])
            if self.device.type == "cuda" and "cuda" in state["rng"]:
                torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        self.last_good = path
        logger.info("resumed from %s at iteration %d of %d", path, self.iteration, self.total)
        world = collectives.world_size()
        if not self.cfg.ENCODER.BN_SPLITS and self.begun_by % world:
            logger.warning(
                "ENCODER.BN_SPLITS 0: batch norm saw %d groups, one per process, and sees %d from "
                "here: the run goes on, but not as if never stopped",
                self.begun_by,
                world,
            )


def compute_step(
    method: Method, parallel: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch
) -> dict[str, Tensor]:
    """What the device does in a step; loss and metrics, and a one that counts the step.

    `parallel` is the method itself, or what shares its gradients over the processes.
    """
    keys = method.prepare(batch)
    optimizer.zero_grad(set_to_none=True)
    outputs: list[MethodOutput] = []
    size = len(batch.indices) // method.parts
    for start in range(0, method.parts * size, size):
        stop = start + size
        with contextlib.ExitStack() as stack:
            # the last part sends the sum of all gradients
            if isinstance(parallel, DistributedDataParallel) and len(outputs) + 1 < method.parts:
                stack.enter_context(parallel.no_sync())
            output = parallel(batch.part(start, stop), None if keys is None else keys[start:stop])
            (output.loss / method.parts).backward()
        outputs.append(output)
    optimizer.step()
    method.after_step(batch.indices, torch.cat([one.features for one in outputs]))
    rows = [{"loss": one.loss.detach(), **one.metrics} for one in outputs]
    means = {name: torch.stack([row[name] for row in rows]).mean(dim=0) for name in rows[0]}
    return {**means, "steps": torch.ones_like(means["loss"])}
