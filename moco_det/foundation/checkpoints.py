"""Checkpoints that are whole or absent, and the newest whole one found again."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moco_det.foundation.atomic import replacing
from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import open_regular, read_text

logger = logging.getLogger(__name__)

Content = dict[str, Any]

LAST = "last_checkpoint"  # detectron2's


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a dictionary of tensors and plain values; torch.load reads it with weights_only."""
    with replacing(path) as file:
        torch.save(dict(content), file)


def load_checkpoint(path: Path) -> Any:
    """What torch.load makes of a file, on the CPU and running nothing; InputError of a wrong one.

    The members of a zip may not unpack to more than the file holds: torch.save compresses none.
    """
    try:
        with open_regular(path) as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    unpacked = sum(member.file_size for member in archive.infolist())
                if unpacked > os.fstat(file.fileno()).st_size:
                    raise ValueError("it would unpack to more than it holds")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
            if any(t.nbytes > t.untyped_storage().nbytes() for t in _tensors(content)):
                raise ValueError("it would unpack to more than it holds")
            return content
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the name of the checkpoint") from None
    except Exception as error:  # a damaged pickle can raise anything
        # torch's own words advise to switch weights_only off, which would run what is in the file
        reason = type(error).__name__
        if isinstance(error, OSError | ValueError):
            reason = getattr(error, "strerror", None) or str(error).split("\n", 1)[0][:120]
        raise InputError(
            f"{path} is no whole checkpoint ({reason}, nothing in it was run): fetch or save it "
            "again"
        ) from None


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, Mapping | list | tuple):
        for value in content.values() if isinstance(content, Mapping) else content:
            yield from _tensors(value)


def noted_last(folder: Path) -> Path | None:
    """The checkpoint that the file `last_checkpoint` of a run names; None where there is none."""
    note = folder / LAST
    if not note.is_file():
        return None
    return folder / read_text(note, "the name of the last checkpoint", 4096).strip()


def check_entries(content: Any, wanted: Mapping[str, Any], path: Path, inside: str = "") -> None:
    """InputError unless a content has each entry that is wanted, of its type or with its own."""
    for name, kind in wanted.items():
        value = content.get(name)
        mapping = isinstance(kind, Mapping)
        if not isinstance(value, dict if mapping else kind) or isinstance(value, bool):
            state = f"{type(value).__name__} for" if name in content else "no"
            raise InputError(f"{path} is not a whole checkpoint: it has {state} {inside}{name}")
        if mapping:
            check_entries(value, kind, path, f"{inside}{name}.")


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Whatever of a checkpoint does not fit the run that takes it is an InputError."""
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch's own checks raise half a dozen types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"--resume: {path} does not fit this run ({reason}): remove it to go on from the one "
            "before it, or choose another OUTPUT_DIR"
        ) from error


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """The saved state of each parameter; rates and all settings stay those of the config."""
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in saved["param_groups"]] != [g["params"] for g in groups]:
        raise ValueError("its optimizer has other parameters")
    optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    kinds = {
        frozenset((name, type(value)) for name, value in optimizer.state.get(one, {}).items())
        for group in optimizer.param_groups
        for one in group["params"]
    }
    if optimizer.defaults.get("fused") and len(kinds) > 1:  # the kernel takes all or none
        raise ValueError("its optimizer has no state of some parameters")
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            wanted = () if name == "step" else parameter.shape
            if isinstance(value, Tensor) and value.shape != wanted:
                raise ValueError(f"its optimizer's {name} has shape {tuple(value.shape)}")
            if not isinstance(value, Tensor | None):
                raise ValueError(f"its optimizer's {name} is {type(value).__name__}")


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
