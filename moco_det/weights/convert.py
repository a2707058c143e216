"""One checkpoint in, one proven backbone file out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from moco_det.errors import InputError
from moco_det.weights.architectures import GEOMETRIES, STAGES, backbone_tensors
from moco_det.weights.proof import check_numbers, forward_difference, kaiming_ratio, untrained
from moco_det.weights.reading import SourceCheckpoint, read_checkpoint
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
            f"written       {self.output} as {self.target_format}, sha256 {self.sha256}",
        ]
        return lines


def summary_lines(source: SourceCheckpoint) -> list[str]:
    """File, format, architecture, encoder and input of a checkpoint, one line each."""
    how = "named by --from" if source.forced else "recognised from its keys"
    if len(source.encoders) == 1:
        encoder = "the only one"
    elif source.encoder_named:
        encoder = source.encoder
    else:
        encoder = f"{source.encoder} (the default; also there: {', '.join(source.encoders[1:])})"
    pixels = "not stated in the file"
    if source.input is not None:
        stride = "1x1" if source.input["stride_in_1x1"] else "3x3"
        pixels = (
            f"{source.input['format']}, mean {source.input['mean']}, std {source.input['std']}, "
            f"stride in the {stride} convolution"
        )
    return [
        f"input         {source.path} ({source.kind}), sha256 {source.sha256}",
        f"format        {source.format} ({how})",
        f"architecture  {source.architecture} ({GEOMETRIES[source.architecture]})",
        f"encoder       {encoder}",
        f"pixels        {pixels}",
    ]


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


def read_arrays(source: SourceCheckpoint) -> dict[str, np.ndarray]:
    """The backbone's numbers under torchvision's names, in the order of the forward pass."""
    order = backbone_tensors(GEOMETRIES[source.architecture])
    for tensor in order:
        kind = source.tensors[tensor.torchvision].dtype
        if kind not in ("float32", "float64", "float16", "bfloat16"):
            raise InputError(f"{source.path}: {tensor.torchvision} holds {kind}, not numbers")
    return {t.torchvision: source.tensors[t.torchvision].read() for t in order}


def convert(
    input_path: str | Path,
    output_path: str | Path,
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    encoder: str | None = None,
) -> Conversion:
    """Convert a checkpoint, prove the result, then write it.

    The target follows from the output's suffix (.pkl and .safetensors detectron2, .pth and .pt
    torchvision) unless `target_format` names it. Raises InputError, and writes nothing, when the
    input cannot be read or a proof fails.
    """
    output = Path(output_path)
    target = _target(output, target_format)
    if output.exists() and os.path.realpath(output) == os.path.realpath(input_path):
        raise InputError(f"{output} is the input itself: name another output file")
    source = read_checkpoint(input_path, source_format=source_format, encoder=encoder)
    if source.input is None:
        raise InputError(
            f"{source.path} does not say in which channel order its network was trained: name it "
            "with --from detectron2-rgb or --from detectron2-msra (BGR, std 1, stride in 1x1)"
        )
    pixels, stride_in_1x1 = source.input["format"], source.input["stride_in_1x1"]
    if target != "detectron2" and (pixels != "RGB" or stride_in_1x1):
        raise InputError(
            f"{source.path} is a network for {pixels} images"
            f"{' with the stride in 1x1' if stride_in_1x1 else ''}, which {target} has no "
            "words for: convert it to a .pkl"
        )
    arrays = read_arrays(source)
    check_numbers(arrays, path=source.path)
    tensors = backbone_tensors(GEOMETRIES[source.architecture])
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
    replace_whole(output, write, lambda partial: digests.append(_read_back(partial, arrays)))
    return Conversion(
        source=source,
        output=output,
        target_format=target,
        tensors=len(tensors),
        per_stage=per_stage,
        warnings=tuple(warnings),
        sha256=digests[0],
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


def _with_counters(
    arrays: Mapping[str, np.ndarray], source: SourceCheckpoint
) -> dict[str, np.ndarray]:
    """torchvision's whole state dict: a batch counter after each variance, 0 where unknown."""
    state: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        state[name] = array
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            reference = source.counters.get(counter)
            value = 0
            if reference is not None and reference.shape == () and reference.dtype == "int64":
                value = int(reference.read().reshape(()))
            state[counter] = np.array(value, dtype=np.int64)
    return state


def _read_back(partial: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Check that what lies on the disk is what was proven, bit for bit; the file's sha256."""
    again = read_checkpoint(partial)
    for name, array in arrays.items():
        if not np.array_equal(again.tensors[name].read(), array):
            raise InputError(f"{name} was written wrongly to {partial.parent}: is the disk full?")
    return again.sha256


def describe(source: SourceCheckpoint) -> dict[str, Any]:
    """Everything `--inspect` shows, as plain data."""
    arrays = read_arrays(source)
    flat = np.concatenate([[a.min(), a.max()] for a in arrays.values()])
    variances = [a for name, a in arrays.items() if name.endswith("running_var")]
    ratios = [kaiming_ratio(a) for a in arrays.values() if a.ndim == 4]
    return {
        "file": str(source.path),
        "stored_as": source.kind,
        "bytes": source.size,
        "sha256": source.sha256,
        "format": source.format,
        "architecture": source.architecture,
        "method": source.method,
        "encoder": source.encoder,
        "encoders": list(source.encoders),
        "input": source.input,
        "backbone_tensors": len(arrays),
        "parameters": sum(a.size for name, a in arrays.items() if "running_" not in name),
        "dtypes": sorted({tensor.dtype for tensor in source.tensors.values()}),
        "head": list(source.head),
        "other_encoder_tensors": source.other_encoder,
        "batch_counters": len(source.counters),
        "foreign_objects": list(source.foreign),
        "finite": bool(np.isfinite(flat).all()),
        "least_variance": float(min(a.min() for a in variances)),
        "convolution_std_over_kaiming": [float(min(ratios)), float(max(ratios))],
        "random_looking": untrained(arrays) is not None,
        "source": source.origin,
        "verified": source.proven,
    }
