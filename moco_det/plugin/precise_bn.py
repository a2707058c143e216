"""detectron2's precise BN with one result for all processes, and a bar that says how long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.engine import hooks
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats
from tqdm import tqdm

from moco_det.foundation.bn_statistics import average_over_processes


class SyncedPreciseBN(hooks.PreciseBN):
    """TEST.PRECISE_BN, after which every process has the statistics of all processes' batches.

    detectron2's own leaves each rank with its own; the first rank's are saved and every rank
    scores its share of the test set with others.
    """

    _data_iter: Iterator[Any] | None

    def update_stats(self) -> None:
        if self._disabled:
            return
        with EventStorage():  # the losses of these batches are no part of the log
            update_bn_stats(self._model, self._batches(), self._num_iter)
        average_over_processes(get_bn_modules(self._model))

    def _batches(self) -> Iterator[Any]:
        bar = tqdm(
            total=self._num_iter,
            desc="precise BN",
            unit="batch",
            mininterval=1,
            disable=not comm.is_main_process(),
        )
        if self._data_iter is None:  # the stream goes on from one evaluation to the next
            self._data_iter = iter(self._data_loader)
        with bar:
            for _ in range(self._num_iter):
                yield next(self._data_iter)
                bar.update()
