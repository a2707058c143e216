"""detectron2's precise BN with one result for all processes, and a bar that says how long."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from detectron2.engine import hooks
from detectron2.utils.events import EventStorage

from moco_det.foundation.bn_statistics import precise_statistics
from moco_det.plugin.loader import SharedBatches


class SyncedPreciseBN(hooks.PreciseBN):
    """TEST.PRECISE_BN, after which every process has the statistics of all processes' batches.

    detectron2's own leaves each rank with its own; the first rank's are saved and every rank
    scores its share of the test set with others.
    """

    _data_iter: Iterator[Any] | None

    @property
    def batches(self) -> SharedBatches:
        """The order of its images, which a resumed run goes on with."""
        found: SharedBatches = self._data_loader.batch_sampler
        return found

    def update_stats(self) -> None:
        if self._disabled:
            return
        if self._data_iter is None:  # the stream goes on from one evaluation to the next
            self._data_iter = iter(self._data_loader)
        with EventStorage():  # the losses of these batches are no part of the log
            precise_statistics(self._model, self._data_iter, self._num_iter)
