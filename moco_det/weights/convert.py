"""One checkpoint in, one proven backbone file out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import STAGES, backbone_tensors
from moco_det.weights.files import digest_of
from moco_det.weights.inspection import read_arrays, summary_lines, unstated_input
from moco_det.weights.proof import check_numbers, forward_difference, untrained
from moco_det.weights.reading import SourceCheckpoint, read_checkpoint, shown
from moco_det.weights.writing import (
    metadata_text,
    replace_whole,
    write_pickle,
    write_safetensors,
    write_torch,
)

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

    def lines(self) -> list[str]:
        """The report a person reads after a conversion."""
        source = self.source
        stages = "  ".join(f"{stage} {self.per_stage[stage]:.1e}" for stage in STAGES)
        lines = [
            *summary_lines(source),
            f"tensors       {self.tensors} of {self.tensors} backbone tensors",
            f"left out      {_left_out(source)}",
            f"difference    {stages}  (largest, torchvision's network against the converted one)",
            *(f"warning: {warning}" for warning in self.warnings),
            f"written       {shown(self.output)} as {self.target_format}, sha256 {self.sha256}",
        ]
        return lines


def _left_out(source: SourceCheckpoint) -> str:
    parts = []
    if source.other_encoder:
        parts.append(f"{source.other_encoder} of the other encoder")
    if source.head:
        more = f" and {len(source.head) - 3} more" if len(source.head) > 3 else ""
        parts.append(f"{len(source.head)} named as head: {', '.join(source.head[:3])}{more}")
    if source.counters:
        parts.append(f"{len(source.counters)} batch counters")
    if source.foreign:
        parts.append(f"foreign objects, not opened: {', '.join(source.foreign[:4])}")
    return "; ".join(parts) or "nothing"


def convert(
    input_path: str | Path,
    output_path: str | Path,
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    encoder: str | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Convert a checkpoint, prove the result, then write it.

    The target follows from the output's suffix (.pkl and .safetensors detectron2, .pth and .pt
    torchvision) unless `target_format` names it. Raises InputError, and writes nothing, when the
    input cannot be read or a proof fails, and, without `overwrite`, when another file has the
    output's name; one of the same bytes may.
    """
    output = Path(output_path)
    target = _target(output, target_format)
    if _is_same(output, Path(input_path)):
        raise InputError(f"{output} is the input itself: name another output file")
    source = read_checkpoint(input_path, source_format=source_format, encoder=encoder)
    if source.input is None:
        raise InputError(unstated_input(source.path))
    pixels, stride_in_1x1 = source.input["format"], source.input["stride_in_1x1"]
    if target != "detectron2" and (pixels != "RGB" or stride_in_1x1):
        raise InputError(
            f"{source.path} is a network for {pixels} images"
            f"{' with the stride in 1x1' if stride_in_1x1 else ''}, which {target} has no "
            "words for: convert it to a .pkl"
        )
    arrays = read_arrays(source)
    check_numbers(arrays, path=source.path)
    tensors = backbone_tensors(ARCHITECTURES[source.architecture])
    renamed = {t.detectron2: arrays[t.torchvision] for t in tensors}
    if len(renamed) != len(tensors):
        raise RuntimeError("two tensors of the architecture table share one name")
    per_stage = forward_difference(
        arrays,
        renamed,
        architecture=source.architecture,
        stride_in_1x1=stride_in_1x1,
        path=source.path,
    )
    warnings = [line for line in (untrained(arrays),) if line is not None]
    records = {
        "input": source.input,
        "source": source.source(),
        "verified": {"max_abs_difference": max(per_stage.values()), "per_stage": per_stage},
    }
    written = renamed if target == "detectron2" else _with_counters(arrays, source)

    def write(file: BinaryIO) -> None:
        if output.suffix == ".pkl":
            head = {"model": written, "__author__": "moco_det", "matching_heuristics": True}
            write_pickle(file, {**head, **records})
        elif output.suffix == ".safetensors":
            write_safetensors(file, written, metadata_text(records))
        else:
            write_torch(file, written)

    digests: list[str] = []

    def check(partial: Path) -> None:
        digests.append(_read_back(partial, arrays))
        source.confirm()
        if not overwrite and output.exists() and digest_of(output) != digests[0]:
            raise InputError(
                f"{output} is there already and is another file: name another output, or replace "
                "it with --overwrite"
            )

    replace_whole(output, write, check)
    return Conversion(
        source=source,
        output=output,
        target_format=target,
        tensors=len(tensors),
        per_stage=per_stage,
        warnings=tuple(warnings),
        sha256=digests[0],
    )


def _is_same(output: Path, source: Path) -> bool:
    try:
        return os.path.samefile(output, source)
    except OSError:  # one of them is not there, which is told later
        return False


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
