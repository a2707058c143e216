"""One checkpoint in, one proven backbone file out."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moco_det.foundation.atomic import make_folder, replacing
from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import backbone_tensors
from moco_det.weights.containers import read_contents
from moco_det.weights.download import local_path, network_of_address
from moco_det.weights.number_checks import check_numbers, untrained
from moco_det.weights.reading import SourceCheckpoint, confirm, read_checkpoint
from moco_det.weights.recognition import table_at
from moco_det.weights.timm_checkpoint import AnyCheckpoint, TimmCheckpoint, read_any
from moco_det.weights.writing import write_pickle, write_safetensors, write_torch

# Target format -> the suffixes it may have; the first format that lists a suffix is its default.
TARGETS: dict[str, tuple[str, ...]] = {
    "detectron2": (".pkl", ".safetensors"),
    "torchvision": (".pth", ".pt", ".safetensors"),
    "timm": (".pth", ".pt", ".safetensors"),  # timm's ResNets have torchvision's names
}


@dataclass(frozen=True)
class ProvenArrays:
    """What is written: the backbone's arrays and, for torchvision and timm, batch counters too.

    `left` are the names in a checkpoint of timm's that are no part of the backbone.
    """

    arrays: Mapping[str, np.ndarray]
    with_counters: Mapping[str, np.ndarray]
    per_stage: dict[str, float]
    read_back: Callable[[Path], str]  # checks a written file bit for bit and gives its sha256
    records: Mapping[str, Any]
    left: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversion:
    """What was converted and what was proven; `sha256` is the output file's."""

    source: AnyCheckpoint
    output: Path
    target_format: str
    tensors: int
    per_stage: dict[str, float]
    warnings: tuple[str, ...]
    sha256: str
    left: tuple[str, ...] = ()  # of a timm network's checkpoint: names that are no backbone's

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
    arch: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert a checkpoint, a file or an address, prove the result, then write it.

    The target follows from the output's suffix (.pkl and .safetensors detectron2, .pth and .pt
    torchvision, or timm of its networks) unless `target_format` names it; `arch` names a network
    of timm. Raises InputError, and writes nothing, when the input cannot be read or a proof fails,
    and, without `overwrite`, when another file has the output's name; one of the same bytes may.
    """
    output = Path(output_path)
    target = _target(output, target_format)
    arch = arch or network_of_address(input_path)
    input_path = local_path(input_path)
    with suppress(OSError):  # one of the two is not there
        if os.path.samefile(output, input_path):
            raise InputError(f"{output} is the input itself: name another output file")
    source = read_any(
        input_path, source_format=source_format, encoder=encoder, prefix=prefix, arch=arch
    )
    if isinstance(source, TimmCheckpoint):
        target = "timm" if target == "torchvision" and target_format is None else target
        proven = _proven_network(source, target)
    else:
        proven = _proven_resnet(source, target)
    warning = untrained(proven.arrays)
    written = proven.arrays if target == "detectron2" else proven.with_counters
    with _new_output(output) as file:
        _write(file, output.suffix, written, proven.records)
        file.flush()
        digest = proven.read_back(Path(file.name))
        confirm(source.contents)
        if not overwrite and output.exists() and not filecmp.cmp(output, file.name, shallow=False):
            raise InputError(
                f"{output} is there already and is another file: name another output, or replace "
                "it with --overwrite"
            )
    return Conversion(
        source=source,
        output=output,
        target_format=target,
        tensors=len(proven.arrays),
        per_stage=proven.per_stage,
        warnings=() if warning is None else (warning,),
        sha256=digest,
        left=proven.left,
    )


def _proven_resnet(source: SourceCheckpoint, target: str) -> ProvenArrays:
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
    shape = ARCHITECTURES[source.architecture]
    renamed = {t.detectron2: arrays[t.torchvision] for t in backbone_tensors(shape)}
    from moco_det.weights.proof import forward_difference  # imports torch

    per_stage = forward_difference(arrays, renamed, shape, stride_in_1x1=in_1x1, path=source.path)
    return ProvenArrays(
        arrays=renamed,
        with_counters=_with_counters(arrays, source.counter),
        per_stage=per_stage,
        read_back=partial(_read_back, arrays=arrays),
        records=_records(source, per_stage),
    )


def _proven_network(source: TimmCheckpoint, target: str) -> ProvenArrays:
    if target == "torchvision":
        raise InputError(
            f"{source.path} is a network of timm, which torchvision has no names for: --to timm"
        )
    from moco_det.weights.timm_proof import prove, read_backbone  # imports torch

    read = read_backbone(source)
    arrays, counters = read.arrays, read.counters
    check_numbers(arrays, path=source.path)
    per_stage = prove(source, read)
    return ProvenArrays(
        arrays=arrays,
        with_counters=_with_counters(arrays, lambda name: int(counters.get(name, 0))),
        per_stage=per_stage,
        read_back=partial(_read_back_network, arrays=arrays),
        records={"architecture": source.architecture, **_records(source, per_stage)},
        left=read.left,
    )


def _records(source: AnyCheckpoint, per_stage: dict[str, float]) -> dict[str, Any]:
    return {
        "input": source.known_input(),
        "source": source.source(),
        "verified": {"max_abs_difference": max(per_stage.values()), "per_stage": per_stage},
    }


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
    arrays: Mapping[str, np.ndarray], counts: Callable[[str], int]
) -> dict[str, np.ndarray]:
    """The whole state dict: a batch counter after each variance, 0 where unknown."""
    state: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        state[name] = array
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state[counter] = np.array(counts(counter), dtype=np.int64)
    return state


def _read_back(written: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Check that what lies on the disk is what was proven, bit for bit; the file's sha256."""
    again = read_checkpoint(written)
    for name, array in arrays.items():
        _same(again.array(name), array, name, written)
    return again.sha256


def _read_back_network(written: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """The same of a network of timm, whose names are those in the file."""
    again = read_contents(written)
    table = table_at(again.root, "model") or table_at(again.root, "")
    for name, array in arrays.items():
        _same(table[name].read(), array, name, written)
    return again.sha256


def _same(read: np.ndarray, array: np.ndarray, name: str, written: Path) -> None:
    if not np.array_equal(read, array):
        raise InputError(f"{name} was written wrongly to {written.parent}: is the disk full?")
