"""detectron2's DefaultTrainer with our scorer, our log and no uninitialised layer unnoticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter
from torch import nn
from tqdm import tqdm

from moco_det.data import DetectionDataset
from moco_det.foundation.errors import InputError
from moco_det.foundation.metrics_file import Writer
from moco_det.plugin.evaluator import evaluate, numbers_only
from moco_det.plugin.metrics_log import MetricsLog
from moco_det.plugin.modeling import any_width
from moco_det.plugin.precise_bn import SyncedPreciseBN
from moco_det.weights.loading import not_finite


def build_detector(cfg: CfgNode) -> nn.Module:
    """The model a config describes; a config that describes none is an InputError."""
    try:
        model: nn.Module = build_model(any_width(cfg))
    except (AssertionError, KeyError, ValueError) as error:
        raise InputError(f"detectron2 builds no model from this config: {error}") from error
    return model


class Trainer(DefaultTrainer):
    """Trains a model that is built and loaded already, so that bad weights are found early.

    ``test_set`` is what DATASETS.TEST names; the last scores are in ``metrics``.
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
        self.metrics_log = MetricsLog(
            Path(cfg.OUTPUT_DIR) / "metrics.jsonl", max_iter=cfg.SOLVER.MAX_ITER, also=also
        )
        super().__init__(cfg)

    def build_model(self, cfg: CfgNode) -> nn.Module:
        return self.loaded_model

    def build_hooks(self) -> list[HookBase]:
        """detectron2's hooks, with our scores, a log period for short runs and a progress bar."""
        replaced = (hooks.EvalHook, hooks.PeriodicWriter)
        theirs = [hook for hook in super().build_hooks() if not isinstance(hook, replaced)]
        found = [
            self._synced(hook) if isinstance(hook, hooks.PreciseBN) else hook for hook in theirs
        ]
        if comm.is_main_process():
            found.append(ProgressBar(f"fine-tuning {Path(self.cfg.OUTPUT_DIR).name}"))
        found.append(hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self.evaluate))
        if comm.is_main_process():
            period = max(1, min(20, self.max_iter // 40))
            found.append(hooks.PeriodicWriter(self.build_writers(), period=period))
        return found

    def _synced(self, hook: hooks.PreciseBN) -> HookBase:
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
            CommonMetricPrinter(self.max_iter),
            self.metrics_log,
            TensorboardXWriter(self.cfg.OUTPUT_DIR),
        ]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "processes": comm.get_world_size()}

    def train(self) -> Any:
        if comm.is_main_process():
            self.metrics_log.keep_before(self.start_iter)
        return super().train()

    def run_step(self) -> None:
        try:
            super().run_step()
        except FloatingPointError as error:
            self.failure = self.diverged(str(error).splitlines()[0])
            raise self.failure from None
        last = self.iter == self.max_iter - 1
        if last or (self.iter + 1) % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0:
            # losses are of the weights before the step, and detectron2 scores any as no detection
            broken = not_finite(self.model)
            if broken:
                self.failure = self.diverged(f"{broken} became Inf or NaN.")
                raise self.failure

    def after_step(self) -> None:
        try:
            super().after_step()
        except FloatingPointError as error:  # precise BN runs the model too
            self.failure = self.diverged(str(error).splitlines()[0])
            raise self.failure from None

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
        self.metrics = evaluate(self.cfg, self.model, self.test_set, name, output)
        self._last_eval_results = numbers_only(self.metrics)  # TEST.EXPECTED_RESULTS reads it
        return self._last_eval_results


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
