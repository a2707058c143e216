"""What an engine gives, and what a run of one needs besides its config.

`moco_det.standalone` and `moco_det.plugin` each give one Engine; `moco_det.runs` does the rest of a
run once for both.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode
    from torch import nn

    from moco_det.data import DetectionDataset
    from moco_det.foundation.metrics_file import Writer
    from moco_det.weights.loading import Loaded

ENGINES = ("auto", "detectron2", "standalone")
FINAL = "model_final.pth"  # what a run of either leaves in its folder


@dataclass(frozen=True)
class RunOptions:
    """``results`` None means results.jsonl in the output folder; ``init_name`` None names the arm
    after its weights; ``strict`` makes a single broken image an error."""

    config_file: str
    resume: bool = False
    eval_only: bool = False
    strict: bool = False
    results: Path | None = None
    init_name: str | None = None
    command: str = ""


@dataclass(frozen=True)
class Detector:
    """A trained detector of either engine.

    `detect` takes a data set without annotations and the title of a progress bar, "" for none,
    and gives COCO result rows in the data set's ids.
    `train` are the data sets that it learned from, by the names in its config, `precision` is the
    one it computes in, and `model` the engine's own.
    """

    detect: Callable[[DetectionDataset, str], list[dict[str, Any]]]
    classes: int
    weights: Path
    train: tuple[str, ...]
    precision: str
    model: Any


class PreparedRun(Protocol):
    """Data, model and weights of a run, which fit together; nothing is written yet.

    ``cfg`` is the config that runs: scaled to the processes, and with a seed. ``iterations`` is how
    many the run is to reach, ``trained`` how many the checkpoint of OUTPUT_DIR has that is gone on
    from, None where there is none, in ``trained_seconds`` (0 where it does not say), and
    ``begun_by`` how many processes that run began with, None where it isn't known.
    """

    cfg: CfgNode
    train_set: DetectionDataset
    test_set: DetectionDataset
    loaded: Loaded
    precision: str
    iterations: int
    trained: int | None
    begun_by: int | None
    trained_seconds: float
    warnings: list[str]

    @property
    def model(self) -> nn.Module:
        """The engine's own detector, with its `backbone`."""

    def log_into(self, output: Path) -> AbstractContextManager[None]:
        """Write what is logged to the run's log.txt, until the block ends."""

    def begin(self) -> None:
        """What the engine does and logs before it trains or scores."""

    def train(self, also: Writer | None) -> dict[str, Any]:
        """All iterations that are left and the final score; the metrics, on the main process.

        Each line of metrics.jsonl is given to ``also``, too.
        """

    def evaluate(self) -> dict[str, Any]:
        """The scores of the weights as they are, on the main process."""


class Engine(Protocol):
    """Trains and runs the detectors that a config describes."""

    def describe(self) -> dict[str, str]:
        """Name, version and, where it is known, commit."""

    def check_processes(self, cfg: CfgNode, total: int) -> None:
        """InputError where it cannot train in that many processes."""

    def join(self, local_world_size: int) -> None:
        """Called in each of several processes, of which this machine has so many."""

    def prepare(self, cfg: CfgNode, options: RunOptions) -> PreparedRun:
        """Everything that can be wrong with the data and the weights is an InputError here."""

    def open_detector(self, cfg: CfgNode) -> Detector:
        """A config's detector with the checkpoint that MODEL.WEIGHTS names."""
