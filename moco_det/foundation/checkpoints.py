"""Checkpoints that are whole or absent, and the newest whole one found again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from moco_det.foundation.atomic import replacing
from moco_det.foundation.errors import InputError

logger = logging.getLogger(__name__)

Content = dict[str, Any]


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a dictionary of tensors and plain values; torch.load reads it with weights_only."""
    with replacing(path) as file:
        torch.save(dict(content), file)


def newest_whole(
    paths: Iterable[Path], read: Callable[[Path], Content]
) -> tuple[Path, Content] | None:
    """The first of the checkpoints, newest first, that ``read`` takes; None where there is none.

    A damaged one is passed over with a warning. InputError where there are some and none of them
    is whole: to start anew in silence would overwrite what is left of the run.
    """
    paths = list(paths)
    for path in paths:
        try:
            return path, read(path)
        except InputError as error:
            logger.warning("%s; the checkpoint before it is used", error)
    if paths:
        raise InputError(
            f"--resume: none of the {len(paths)} checkpoints in {paths[0].parent} is whole: choose "
            "another OUTPUT_DIR to start anew"
        )
    return None
