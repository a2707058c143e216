"""One checkpoint in, one proven backbone file out."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moco_det.foundation.atomic import make_folder, replacing
from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import backbone_tensors
from moco_det.weights.download import local_path
from moco_det.weights.number_checks import check_numbers, untrained
from moco_det.weights.reading import SourceCheckpoint, read_checkpoint
from moco_det.weights.writing import write_pickle, write_safetensors, write_torch

# Target format -> the suffixes it may have; the first format that lists a suffix is its default.
TARGETS: dict[str, tuple[str, ...]] = {
    "detectron2": (".pkl", ".safetensors"),
    "torchvision": (".pth", ".pt", ".safetensors"),
    "timm": (".pth", ".pt", ".safetensors"),  # timm's ResNets have torchvision's names
}


@dataclass(frozen=True)
class Conversion:
    """What was converted and what was proven; `sha256` is the output file's."""

    source: SourceCheckpoint
    output: Path
    target_format: str
    tensors: int
    per_stage: dict[str, float]
    warnings: tuple[str, ...]
    sha256: str

    @property
    def max_abs_difference(self) -> float:
        return max(self.per_stage.values())


def convert(
    input_path: str | Path,
    output_path: str | Path,
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    encoder: str | None = None,
    prefix: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert a checkpoint, a file or an address, prove the result, then write it.

    The target follows from the output's suffix (.pkl and .safetensors detectron2, .pth and .pt
    torchvision) unless `target_format` names it. Raises InputError, and writes nothing, when the
    input cannot be read or a proof fails, and, without `overwrite`, when another file has the
    output's name; one of the same bytes may.
    """
    output = Path(output_path)
    target = _target(output, target_format)
    input_path = local_path(input_path)
    with suppress(OSError):  # one of the two is not there
        if os.path.samefile(output, input_path):
            raise InputError(f"{output} is the input itself: name another output file")
    source = read_checkpoint(
        input_path, source_format=source_format, encoder=encoder, prefix=prefix
    )
    pixels = source.known_input()
    in_1x1 = pixels["stride_in_1x1"]
    if target != "detectron2" and (pixels["format"] != "RGB" or in_1x1):
        raise InputError(
            f"{source.path} is a network for {pixels['format']} images"
            f"{' with the stride in 1x1' if in_1x1 else ''}, which {target} has no "
            "words for: convert it to a .pkl"
        )
    arrays = source.arrays()
    check_numbers(arrays, path=source.path)
    tensors = backbone_tensors(ARCHITECTURES[source.architecture])
    renamed = {t.detectron2: arrays[t.torchvision] for t in tensors}
    from moco_det.weights.proof import forward_difference  # imports torch

    shape = ARCHITECTURES[source.architecture]
    per_stage = forward_difference(arrays, renamed, shape, stride_in_1x1=in_1x1, path=source.path)
    warning = untrained(arrays)
    records = {
        "input": pixels,
        "source": source.source(),
        "verified": {"max_abs_difference": max(per_stage.values()), "per_stage": per_stage},
    }
    written = renamed if target == "detectron2" else _with_counters(arrays, source)
    with _new_output(output) as file:
        _write(file, output.suffix, written, records)
        file.flush()
        digest = _read_back(Path(file.name), arrays)
        source.confirm()
        if not overwrite and output.exists() and not filecmp.cmp(output, file.name, shallow=False):
            raise InputError(
                f"{output} is there already and is another file: name another output, or replace "
                "it with --overwrite"
            )
    return Conversion(
        source=source,
        output=output,
        target_format=target,
        tensors=len(tensors),
        per_stage=per_stage,
        warnings=() if warning is None else (warning,),
        sha256=digest,
    )


def _target(output: Path, target_format: str | None) -> str:
    if target_format is not None and target_format not in TARGETS:
        raise InputError(f"unknown target {target_format!r}: choose from {', '.join(TARGETS)}")
    for name, suffixes in TARGETS.items():
        if output.suffix in suffixes and target_format in (None, name):
            return name
    wanted = TARGETS[target_format] if target_format else (".pkl", ".safetensors", ".pth")
    raise InputError(
        f"{output}: a {target_format or 'backbone'} file ends with {' or '.join(wanted)}"
    )


@contextmanager
def _new_output(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` at the end of the block, in folders that are made.

    On any failure nothing is left behind, no new folder either.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory: name the output file in it")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a regular file: name another output")
    made = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    try:
        make_folder(path.parent)
        with replacing(path) as file:
            yield file
    finally:
        for folder in made:
            with suppress(OSError):  # the file is in it
                folder.rmdir()


def _write(
    file: BinaryIO, suffix: str, arrays: Mapping[str, np.ndarray], records: Mapping[str, Any]
) -> None:
    if suffix == ".pkl":
        head = {"model": arrays, "__author__": "moco_det", "matching_heuristics": True}
        write_pickle(file, {**head, **records})
    elif suffix == ".safetensors":
        write_safetensors(file, arrays, records)
    else:
        write_torch(file, arrays)


def _with_counters(
    arrays: Mapping[str, np.ndarray], source: SourceCheckpoint
) -> dict[str, np.ndarray]:
    """torchvision's whole state dict: a batch counter after each variance, 0 where unknown."""
    state: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        state[name] = array
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state[counter] = np.array(source.counter(counter), dtype=np.int64)
    return state


def _read_back(partial: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Check that what lies on the disk is what was proven, bit for bit; the file's sha256."""
    again = read_checkpoint(partial)
    for name, array in arrays.items():
        if not np.array_equal(again.array(name), array):
            raise InputError(f"{name} was written wrongly to {partial.parent}: is the disk full?")
    return again.sha256
