"""The training loop: batches, steps, logs, checkpoints, scores."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from tqdm import tqdm

from moco_det.data import DetectionDataset, Record
from moco_det.data.check import check_trainable
from moco_det.foundation import collectives
from moco_det.foundation.checkpoints import Content, noted_last
from moco_det.foundation.errors import InputError
from moco_det.foundation.metrics_file import Writer
from moco_det.foundation.precision import Precision
from moco_det.foundation.stopping import Stopped, deferred
from moco_det.scoring import metric_lines, score, write_predictions
from moco_det.settings.engine import FINAL
from moco_det.standalone.build import build_mapper, build_solver
from moco_det.standalone.checkpoint import PERIODIC, begun_by, restore, save
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.evaluate import predict
from moco_det.standalone.loader import BatchStream, training_loader, usable
from moco_det.standalone.mapper import Sample
from moco_det.standalone.metrics_log import Log
from moco_det.standalone.precise_bn import update_statistics
from moco_det.standalone.recording import recorded
from moco_det.weights.loading import not_finite

logger = logging.getLogger(__name__)


@deferred()
def train(
    cfg: CfgNode,
    model: GeneralizedRCNN,
    train_set: DetectionDataset,
    test_set: DetectionDataset,
    precision: Precision,
    output: Path,
    *,
    found: tuple[Path, Content] | None,
    also: Writer | None = None,
) -> dict[str, Any]:
    """All iterations after those of the checkpoint ``found``, and the final score, returned.

    Where a signal asks for it: Stopped on all processes, with a checkpoint, after the step or, in
    an evaluation, after its batch. The evaluation is then done anew before the next step.
    """
    begun = time.monotonic() - (float(found[1].get("seconds", 0)) if found is not None else 0)
    due = found is not None and bool(found[1].get("evaluation_due"))
    records = training_records(cfg, train_set)
    world = collectives.world_size()
    solver = build_solver(cfg, model)
    scaler = torch.amp.GradScaler(precision.device, enabled=precision.needs_scaler)
    first = restore(found, model, solver.optimizer, scaler) if found is not None else 0
    solver.set_iteration(max(0, first - 1))  # the last step may be over
    streams = begun_by(found[1]) if found is not None else world
    mapper = build_mapper(cfg, train=True)

    def loader(stream_seed: int, start: int) -> Any:
        stream = BatchStream(
            records,
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            seed=stream_seed,
            start=start,
            group_by_aspect=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
            streams=streams,
            rank=collectives.rank(),
            world_size=world,
        )
        return training_loader(records, mapper, stream, workers=cfg.DATALOADER.NUM_WORKERS)

    wrapped = collectives.parallel(model)
    if captures(cfg, world):
        model.capture()
    log = Log(
        output / "metrics.jsonl", cfg.SOLVER.MAX_ITER, keep_before=first, rescored=due, also=also
    )
    agreement = collectives.Agreement(precision.device)

    def keep(name: str, iteration: int, *, evaluation_due: bool = False) -> None:
        save(
            output,
            name,
            model,
            solver.optimizer,
            scaler,
            iteration,
            cfg.SEED,
            streams,
            seconds=time.monotonic() - begun,
            evaluation_due=evaluation_due,
        )

    def finish(iteration: int) -> dict[str, Any]:
        buffers = [buffer.clone() for buffer in model.buffers()]
        try:
            if cfg.TEST.PRECISE_BN.ENABLED:
                batches = agreement.until_asked(loader(cfg.SEED + 1, 0))
                update_statistics(model, batches, cfg.TEST.PRECISE_BN.NUM_ITER, precision)
            found = evaluate(cfg, model, test_set, precision, output, iteration=iteration)
        except FloatingPointError as error:
            raise diverged(str(error), iteration, output) from None
        except Stopped:
            for buffer, kept in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(kept)
            raise
        log.write_scores(iteration, found)
        return found

    def settle(step_: Step) -> None:
        losses = step_.losses()
        check_finite(losses, step_.iteration, output)
        log.write_step(
            step_.iteration,
            losses,
            step_.numbers,
            lr=step_.lr,
            seconds=step_.seconds,
            waited=step_.waited,
        )
        bar.set_postfix(loss=f"{sum(losses.values()):.3f}", refresh=False)

    metrics = finish(first - 1) if due else None
    if due and first == cfg.SOLVER.MAX_ITER:
        keep(FINAL, first - 1)
    before: Step | None = None  # its losses are read when the next step has been started
    model.train()
    batches = iter(loader(cfg.SEED, first)) if first < cfg.SOLVER.MAX_ITER else iter(())
    title = f"fine-tuning {output.name}"
    with tqdm(
        total=cfg.SOLVER.MAX_ITER,
        initial=first,
        desc=title,
        unit="step",
        mininterval=1,
        disable=collectives.rank() != 0,
    ) as bar:
        for iteration in range(first, cfg.SOLVER.MAX_ITER):
            clock = time.monotonic()
            samples: list[Sample] = next(batches)
            waited = time.monotonic() - clock
            lr = solver.set_iteration(iteration)
            try:
                with recorded(log.is_due(iteration)) as numbers:
                    names, values = step(cfg, wrapped, solver.optimizer, scaler, samples, precision)
            except FloatingPointError as error:  # the proposals see it before the losses do
                if before is not None:
                    settle(before)
                raise diverged(str(error), iteration, output) from None
            if before is not None:
                settle(before)
            seconds = time.monotonic() - clock
            before = Step(iteration, names, values, numbers, lr, seconds, waited)
            bar.update()
            stop = agreement.asked()
            done = iteration + 1
            last = done == cfg.SOLVER.MAX_ITER
            period = cfg.TEST.EVAL_PERIOD
            scored = last or (period > 0 and done % period == 0)
            kept = last or done % cfg.SOLVER.CHECKPOINT_PERIOD == 0
            if scored or kept or stop:
                settle(before)
                before = None
                # losses are of the weights before the step
                broken = not_finite(model)
                if broken:
                    raise diverged(f"{broken} became Inf or NaN", iteration, output)
            if scored and not stop:
                try:
                    metrics = finish(iteration)
                except Stopped as error:
                    stop = error.number
            if stop:
                keep(PERIODIC.format(iteration), iteration, evaluation_due=scored)
                raise Stopped(stop)
            if kept:
                keep(FINAL if last else PERIODIC.format(iteration), iteration)
    if metrics is None:
        metrics = finish(cfg.SOLVER.MAX_ITER - 1)
    log.close()
    return metrics


def captures(cfg: CfgNode, processes: int) -> bool:
    """Whether a run takes CUDA graphs: asked for, on a GPU, with no messages of SyncBN inside."""
    return bool(cfg.SOLVER.CUDA_GRAPHS and cfg.MODEL.DEVICE.startswith("cuda") and processes == 1)


def training_records(cfg: CfgNode, train_set: DetectionDataset) -> list[Record]:
    """The images to train on; InputError where there is none or the processes cannot share."""
    world = collectives.world_size()
    if cfg.SOLVER.IMS_PER_BATCH % world:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} does not divide by {world} processes"
        )
    skip_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    check_trainable(train_set, skip_empty=skip_empty)
    return usable(train_set.records) if skip_empty else list(train_set.records)


@dataclass
class Step:
    """A step that was started: its losses are known when the device has got there."""

    iteration: int
    names: list[str]
    values: Tensor
    numbers: dict[str, float]
    lr: float
    seconds: float
    waited: float

    def losses(self) -> dict[str, float]:
        """Waits for the device."""
        return dict(zip(self.names, self.values.tolist(), strict=True))


def step(
    cfg: CfgNode,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    samples: list[Sample],
    precision: Precision,
) -> tuple[list[str], Tensor]:
    """One step; returns the losses' names and values, averaged over the processes."""
    with precision.autocast():
        losses = model([s.image for s in samples], [s.targets for s in samples])
        total = sum(losses.values())
    optimizer.zero_grad()
    scaler.scale(total).backward()
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED:
        scaler.unscale_(optimizer)
        for parameter in (p for p in model.parameters() if p.grad is not None):
            if clip.CLIP_TYPE == "value":
                nn.utils.clip_grad_value_(parameter, clip.CLIP_VALUE)
            else:
                nn.utils.clip_grad_norm_(parameter, clip.CLIP_VALUE, clip.NORM_TYPE)
    scaler.step(optimizer)
    scaler.update()
    values = torch.stack([loss.detach() for loss in losses.values()])
    return list(losses), collectives.mean(values)


def check_finite(losses: dict[str, float], iteration: int, output: Path) -> None:
    """Stop a diverged run with the way out."""
    if not math.isfinite(sum(losses.values())):
        broken = ", ".join(name for name, value in losses.items() if not math.isfinite(value))
        raise diverged(f"{broken} became Inf or NaN", iteration, output)


def diverged(what: str, iteration: int, output: Path) -> InputError:
    """The error of a run whose numbers overflowed, with the last good checkpoint's name."""
    last = noted_last(output)
    return InputError(
        f"{what} in iteration {iteration}: lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS; "
        f"last good checkpoint: {last.name if last else 'none was written yet'}"
    )


def evaluate(
    cfg: CfgNode,
    model: GeneralizedRCNN,
    test_set: DetectionDataset,
    precision: Precision,
    output: Path,
    *,
    iteration: int | None,
) -> dict[str, Any]:
    """Predictions of the test set to predictions.json, and their scores."""
    mapper = build_mapper(cfg, train=False)
    collectives.share_buffers(model)
    rows = predict(
        model,
        test_set,
        mapper,
        precision,
        workers=cfg.DATALOADER.NUM_WORKERS,
        description=f"testing {test_set.name}",
    )
    metrics: dict[str, Any] = {}
    if collectives.rank() == 0:
        write_predictions(output / "predictions.json", rows)
        metrics = score(test_set, rows, with_masks=cfg.MODEL.MASK_ON)
        where = "evaluation" if iteration is None else f"iteration {iteration + 1}"
        for line in metric_lines(metrics):
            logger.info("%s: %s", where, line)
    return collectives.gather_objects(metrics)[0]
