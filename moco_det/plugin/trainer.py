"""detectron2's DefaultTrainer with our scorer, our log and no uninitialised layer unnoticed."""

from __future__ import annotations

import traceback
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, hooks
from detectron2.modeling import build_model
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from moco_det.data import DetectionDataset
from moco_det.foundation import stopping
from moco_det.foundation.checkpoints import Content, restore_optimizer, restoring
from moco_det.foundation.collectives import Agreement
from moco_det.foundation.errors import InputError
from moco_det.foundation.metrics_file import Writer
from moco_det.plugin.evaluator import evaluate, numbers_only
from moco_det.plugin.loader import training_loader
from moco_det.plugin.metrics_log import MetricsLog
from moco_det.plugin.modeling import any_width
from moco_det.plugin.precise_bn import SyncedPreciseBN
from moco_det.plugin.random_state import untouched
from moco_det.plugin.run_state import RunState, WholeCheckpointer
from moco_det.plugin.weights import run_state
from moco_det.results.matched import TIMM_BACKBONE
from moco_det.settings.engine import FINAL
from moco_det.settings.optimizers import build_optimizer
from moco_det.weights.loading import load_model_state, not_finite


def build_detector(cfg: CfgNode) -> nn.Module:
    """The model a config describes; a config that describes none is an InputError."""
    try:
        model: nn.Module = build_model(any_width(cfg))
    except (AssertionError, KeyError, ValueError) as error:
        # its assertions seldom say more than themselves
        why = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
        raise InputError(f"detectron2 builds no model from this config: {why}") from error
    return model


class Trainer(DefaultTrainer):
    """Trains a model that is built and loaded already, so that bad weights are found early.

    ``test_set`` is what DATASETS.TEST names; the last scores are in ``metrics``. A signal that
    asks for a stop ends `train` after the step with a checkpoint and `stopping.Stopped`.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        model: nn.Module,
        test_set: DetectionDataset,
        also: Writer | None = None,
    ) -> None:
        self.loaded_model = model
        self.test_set = test_set
        self.metrics: dict[str, Any] = {}
        self.failure: InputError | None = None
        self.agreement = Agreement(cfg.MODEL.DEVICE)
        self.metrics_log = MetricsLog(
            Path(cfg.OUTPUT_DIR) / "metrics.jsonl", max_iter=cfg.SOLVER.MAX_ITER, also=also
        )
        super().__init__(cfg)

    def build_model(self, cfg: CfgNode) -> nn.Module:
        return self.loaded_model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """detectron2's SGD; AdamW, and what trains a timm network, are the standalone engine's."""
        if cfg.SOLVER.OPTIMIZER == "SGD" and cfg.MODEL.BACKBONE.NAME != TIMM_BACKBONE:
            return super().build_optimizer(cfg, model)
        return maybe_add_gradient_clipping(cfg, build_optimizer(cfg, model, fused=False))

    def build_train_loader(self, cfg: CfgNode) -> DataLoader[dict[str, Any]]:
        return training_loader(cfg)

    def build_hooks(self) -> list[HookBase]:
        """detectron2's hooks, with what a resumed run needs, our scores, log period and a bar.

        A checkpoint is saved after the evaluation of its iteration, not before it.
        """
        self.checkpointer = WholeCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        batches, period = self.data_loader.batch_sampler, self.cfg.SOLVER.CHECKPOINT_PERIOD
        self.run_state = RunState(batches, period)
        self.scores = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate)
        self.precise: SyncedPreciseBN | None = None
        found: list[HookBase] = []
        for hook in super().build_hooks():
            if isinstance(hook, hooks.PreciseBN):
                self.precise = self._synced(hook)
                found.append(self.precise)
            elif isinstance(hook, (hooks.IterationTimer, hooks.LRScheduler)):
                found.append(hook)
        main = comm.is_main_process()
        if main:
            found.append(ProgressBar(f"fine-tuning {Path(self.cfg.OUTPUT_DIR).name}"))
        found += [self.scores, self.run_state]
        if main:
            found.append(hooks.PeriodicCheckpointer(self.checkpointer, period))
            often = max(1, min(20, self.max_iter // 40))
            found.append(hooks.PeriodicWriter(self.build_writers(), period=often))
        return found

    def _synced(self, hook: hooks.PreciseBN) -> SyncedPreciseBN:
        """The same precise BN, its place among the hooks kept: before the checkpoint is saved."""
        return SyncedPreciseBN(
            self.cfg.TEST.EVAL_PERIOD,
            self.model,
            hook._data_loader,
            self.cfg.TEST.PRECISE_BN.NUM_ITER,
        )

    def build_writers(self) -> list[EventWriter]:
        self.metrics_log.last = self.max_iter - 1
        return [
            MetricPrinter(self.max_iter),
            self.metrics_log,
            TensorboardXWriter(self.cfg.OUTPUT_DIR),
        ]

    def go_on_from(self, path: Path, content: Content) -> None:
        """Restore a run; rates and all settings of the optimizer stay those of the config."""
        load_model_state(self.checkpointer.model, content["model"], path)
        trainer = content["trainer"]
        with restoring(path):
            restore_optimizer(self.optimizer, trainer["_trainer"]["optimizer"])
            if isinstance(self._trainer, AMPTrainer):
                self._trainer.grad_scaler.load_state_dict(trainer["_trainer"]["grad_scaler"])
            if state := run_state(content):
                self.run_state.load_state_dict(state)
        self.start_iter = self.scheduler.last_epoch = trainer["iteration"] + 1
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
            group["lr"] = rate
        self.run_state.batches.done = self.start_iter
        period = self.cfg.TEST.EVAL_PERIOD
        if self.precise is not None and period > 0:
            batches = self.precise.batches
            batches.seed = self.run_state.batches.seed
            batches.done = self.start_iter // period * self.cfg.TEST.PRECISE_BN.NUM_ITER

    def train(self) -> Any:
        if comm.is_main_process():
            self.metrics_log.keep_before(self.start_iter)
        with stopping.deferred():
            return super().train()

    def before_train(self) -> None:
        super().before_train()
        if self.run_state.evaluation_due:
            self.iter = self.storage.iter = self.start_iter - 1
            self.scores.after_step()
            self.run_state.evaluation_due = False
        final = Path(self.cfg.OUTPUT_DIR) / FINAL
        if self.start_iter >= self.max_iter and not final.exists():  # killed between the last two
            self.run_state.gather()
            self.checkpointer.save(final.stem, iteration=self.start_iter - 1)

    def run_step(self) -> None:
        try:
            super().run_step()
        except FloatingPointError as error:
            self.failure = self.diverged(str(error).splitlines()[0])
            raise self.failure from None
        if self.is_last or (self.iter + 1) % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
            self.check_finite()

    @property
    def is_last(self) -> bool:
        return bool(self.iter == self.max_iter - 1)

    def check_finite(self) -> None:
        """Before a checkpoint: losses are of the weights before the step, and detectron2 scores
        weights that are Inf or NaN as no detection."""
        broken = not_finite(self.model)
        if broken:
            self.failure = self.diverged(f"{broken} became Inf or NaN.")
            raise self.failure

    def after_step(self) -> None:
        try:
            super().after_step()
            # the last step's checkpoint is written, and its evaluation looks for a stop itself
            signal = 0 if self.is_last else self.agreement.asked()
        except FloatingPointError as error:  # precise BN runs the model too
            self.failure = self.diverged(str(error).splitlines()[0])
            raise self.failure from None
        except InputError as error:  # a full disk
            self.failure = error
            raise
        except stopping.Stopped as stop:  # every process has given up the evaluation
            self.run_state.evaluation_due, signal = True, stop.number
        if signal:
            self.check_finite()
            self.run_state.gather()
            self.checkpointer.save(f"model_{self.iter:07d}", iteration=self.iter)
            raise stopping.Stopped(signal)

    def diverged(self, what: str) -> InputError:
        """The error of a run whose numbers overflowed, with the last good checkpoint's name."""
        checkpointer = self.checkpointer
        last = checkpointer.get_checkpoint_file() if checkpointer.has_checkpoint() else ""
        return InputError(
            f"iteration {self.iter}: {what} Lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS; "
            f"last good checkpoint: {Path(last).name or 'none was written yet'}"
        )

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Score the test set; what detectron2 keeps are the numbers alone."""
        if self.failure is not None:
            raise self.failure  # detectron2 evaluates also after a last step that failed
        output = Path(self.cfg.OUTPUT_DIR)
        name = self.cfg.DATASETS.TEST[0]
        with untouched():  # training goes on alike, however often it is scored
            self.metrics = evaluate(self.cfg, self.model, self.test_set, name, output)
        self._last_eval_results = numbers_only(self.metrics)  # TEST.EXPECTED_RESULTS reads it
        return self._last_eval_results


class MetricPrinter(CommonMetricPrinter):
    """detectron2's, which divides by zero where it is asked twice for one of the first steps."""

    def write(self) -> None:
        with suppress(ZeroDivisionError):
            super().write()


class ProgressBar(HookBase):
    """Iterations done and time left, on the terminal."""

    def __init__(self, title: str) -> None:
        self.title = title

    def before_train(self) -> None:
        self.bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            desc=self.title,
            unit="step",
            mininterval=1,
        )

    def after_step(self) -> None:
        self.bar.update()

    def after_train(self) -> None:
        self.bar.close()
