"""The folder of a run, whose config stays that of its numbers.

Both engines use it: what is refused here is refused before anything of a run is touched.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fvcore.common.config import CfgNode

from moco_det.foundation.atomic import make_folder
from moco_det.foundation.checkpoints import LAST
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import read_text
from moco_det.foundation.strict_yaml import MOST_YAML, flatten, load_mapping
from moco_det.results import Row, read_rows
from moco_det.runs.row import sha256_of
from moco_det.settings.config import dump
from moco_det.settings.engine import FINAL
from moco_det.weights.backbone import check_exists
from moco_det.weights.download import local_path

CONFIG = "config.yaml"
# What may differ when a run goes on: none of it enters its numbers.
FREE = (
    "DATALOADER.NUM_WORKERS",
    "MODEL.DEVICE",
    "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.CUDA_GRAPHS",
    "TEST.EVAL_PERIOD",
    "WANDB",
)
# A run may be made longer or shorter; its row says so.
SCHEDULE = ("SOLVER.MAX_ITER", "SOLVER.STEPS")


def check_free(output: Path, *, resume: bool, eval_only: bool, weights: str) -> None:
    """InputError where a run would overwrite a finished or a stopped one.

    Scoring alone may write beside a finished run what its own checkpoints predict.
    """
    if resume or not os.path.exists(output / FINAL):
        if not (resume or eval_only) and os.path.exists(output / LAST):
            raise InputError(
                f"{output} holds a run that was stopped: go on with --resume, which stands before "
                "any KEY VALUE, or choose another OUTPUT_DIR"
            )
        return
    if not eval_only:
        raise InputError(
            f"{output} holds a finished run: choose another OUTPUT_DIR, or --resume to keep it"
        )
    if Path(weights).resolve().parent != output.resolve():
        raise InputError(
            f"{output} holds a finished run, whose predictions.json {weights} would overwrite: "
            "choose another OUTPUT_DIR"
        )


def check_results(results: Path) -> None:
    """InputError where no row could be appended: told before the run, not after it."""
    if results.is_dir():
        raise InputError(f"--results {results} is a folder: name a file in it")
    make_folder(results.parent)
    if results.exists() and not os.access(results, os.W_OK):
        raise InputError(f"--results {results} cannot be written: name another file")


def check_unchanged(output: Path, cfg: CfgNode) -> list[str]:
    """InputError where a run that goes on was begun with another config; a line for its length.

    Keys that only the other engine knows are not compared.
    """
    if not os.path.lexists(output / CONFIG):
        return []
    text = read_text(output / CONFIG, "config", MOST_YAML)
    changes = _changes(text, str(output / CONFIG), cfg)
    for key, (before, now) in changes.items():
        if key not in SCHEDULE:
            raise InputError(
                f"--resume: {output} was begun with {key} {_shown(before)}, not {_shown(now)}: "
                f"resume it with its own {CONFIG}, or choose another OUTPUT_DIR"
            )
    return [
        f"begun with {key} {_shown(before)}, resumed with {_shown(now)}"
        for key, (before, now) in changes.items()
    ]


def check_batch_stays(output: Path, cfg: CfgNode, begun_by: int | None, processes: int) -> None:
    """InputError where SOLVER.REFERENCE_WORLD_SIZE would change the batch of a run that goes on."""
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference and begun_by not in (None, processes):
        raise InputError(
            f"--resume: {output} was begun by {begun_by} process(es), for which "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference} made batch and learning rate; {processes} "
            f"would change both in the middle of the run: resume it with {begun_by}, or choose "
            "another OUTPUT_DIR"
        )


def written_row(results: Path, output: Path, cfg: CfgNode, engine: str) -> Row | None:
    """The row of this run in a results file, None where it has none there.

    A run has one row per results file. It is the same run where the folder, the config but for the
    FREE keys, the bytes of the weights and the engine are the same.
    """
    if not results.is_file():
        return None
    for row in read_rows([results]).rows:
        here = os.path.realpath(row.run_dir) == os.path.realpath(output)
        if not (here and row.finished and row.data["engine"]["name"] == engine):
            continue
        with suppress(InputError):  # of a config that is none
            if not _changes(row.data["config"], "the row's config", cfg) and (
                row.data["init"]["sha256"] == _sha256_of_weights(cfg.MODEL.WEIGHTS)
            ):
                return row
    return None


def _sha256_of_weights(weights: str) -> str | None:
    if not weights:
        return None
    file = local_path(weights)
    check_exists(file)
    return sha256_of(file)


def _changes(begun: str, what: str, cfg: CfgNode) -> dict[str, tuple[Any, Any]]:
    """The keys that both configs have and that enter a run's numbers, with their two values."""
    before = flatten(load_mapping(begun, what))
    now = flatten(load_mapping(dump(cfg), "the config"))
    return {
        key: (before[key], value)
        for key, value in now.items()
        if key in before and before[key] != value and key not in FREE
    }


def _shown(value: Any) -> str:
    return repr(value) if value == "" else str(value)
