"""What a checkpoint file is, as plain data; nothing is converted.

No torch is needed but for checkpoints of timm's networks, whose names timm reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import STAGES, backbone_tensors
from moco_det.weights.containers import Contents, input_errors, read_contents
from moco_det.weights.download import local_path, network_of_address
from moco_det.weights.number_checks import check_numbers, kaiming_ratio, untrained
from moco_det.weights.reading import SourceCheckpoint, check_format, printable
from moco_det.weights.tensors import tensors_of
from moco_det.weights.timm_checkpoint import (
    AnyCheckpoint,
    TimmCheckpoint,
    recognise_any,
)

SCHEMA = "moco-det/inspect/1"
OF_A_FORMAT = (  # the keys of `describe`
    *(
        "format",
        "prefix",
        "architecture",
        "method",
        "encoder",
        "encoders",
        "input",
        "backbone_tensors",
    ),
    *("parameters", "dtypes", "head", "other_encoder_tensors", "batch_counters", "stages"),
    *("finite", "least_variance", "convolution_std_over_kaiming", "random_looking"),
    *("source", "verified"),
)
COUNTER = "num_batches_tracked"
SHOWN_TENSORS = 8  # of each table of a file that no format claims


def inspect(
    path: str | Path,
    *,
    source_format: str | None = None,
    encoder: str | None = None,
    prefix: str | None = None,
    arch: str | None = None,
) -> dict[str, Any]:
    """Everything `--inspect` shows, as plain data that json can hold; docs/weights.md has the keys.

    A file that cannot be converted is described as far as it is understood, with the reason under
    "problem". Raises InputError for what is no readable checkpoint at all.
    """
    check_format(source_format)
    arch = arch or network_of_address(path)
    contents = read_contents(local_path(path))
    with input_errors(contents.path):
        facts = _facts_of_file(contents)
    try:
        source = recognise_any(
            contents, source_format=source_format, encoder=encoder, prefix=prefix, arch=arch
        )
        if isinstance(source, TimmCheckpoint):
            arrays, own = _network(source)
        else:
            arrays = source.arrays()
            own = _resnet(source, arrays)
        facts.update(own | describe(source, arrays))
        source.known_input()
        check_numbers(arrays, path=source.path)
    except InputError as error:
        facts.update(convertible=False, problem=printable(error))
    contents.state.check()
    return facts


def _facts_of_file(contents: Contents) -> dict[str, Any]:
    """What can be said of any file; what needs a format is None."""
    return {
        "schema": SCHEMA,
        "file": printable(contents.path),
        "stored_as": contents.kind,
        "bytes": contents.state.size,
        "sha256": contents.sha256,
        "convertible": True,
        "problem": None,
        "tables": _tables(contents.entries),
        "foreign_objects": list(contents.foreign),
        "warnings": [],
        **dict.fromkeys(OF_A_FORMAT),
    }


def _tables(root: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """The dicts of tensors in a file: the root, and one level below it."""
    places = {"": root, **{str(k): v for k, v in root.items() if isinstance(v, dict)}}
    tables = []
    for place, table in places.items():
        tensors = tensors_of(table)
        if tensors:
            tables.append(
                {
                    "place": place if place.isprintable() else ascii(place),
                    "tensors": len(tensors),
                    "first": [
                        {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
                        for name, tensor in list(tensors.items())[:SHOWN_TENSORS]
                    ],
                }
            )
    return tables


def describe(source: AnyCheckpoint, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The facts of a recognised checkpoint and its backbone's arrays; proves nothing."""
    random_looking = untrained(arrays)
    variances = [a for name, a in arrays.items() if name.endswith("running_var")]
    ratios = [kaiming_ratio(a) for a in arrays.values() if a.ndim == 4]
    return {
        "format": source.format,
        "architecture": source.architecture,
        "encoder": source.encoder,
        "encoders": list(source.encoders),
        "input": source.input,
        "backbone_tensors": len(arrays),
        "parameters": sum(a.size for name, a in arrays.items() if "running_" not in name),
        "dtypes": sorted({t.dtype for n, t in source.tensors.items() if not n.endswith(COUNTER)}),
        "finite": all(bool(np.isfinite(a).all()) for a in arrays.values()),
        "least_variance": _range(variances)[0] if variances else None,
        "convolution_std_over_kaiming": [_number(min(ratios)), _number(max(ratios))],
        "random_looking": random_looking is not None,
        "warnings": [] if random_looking is None else [random_looking],
        "source": source.origin,
        "verified": source.proven,
    }


def _resnet(source: SourceCheckpoint, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What is said of a ResNet's checkpoint alone."""
    return {
        "prefix": None if source.resnet is None else source.resnet.prefix,
        "method": source.method,
        "head": list(source.head),
        "other_encoder_tensors": source.other_encoder,
        "batch_counters": len(source.counters),
        "stages": _stages(arrays, source.architecture),
    }


def _network(source: TimmCheckpoint) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The backbone's arrays of a network of timm, and what is said of its checkpoint alone."""
    if source.is_backbone:
        return source.arrays(), {"head": [], "batch_counters": 0}
    from moco_det.weights.timm_proof import read_backbone  # imports torch

    read = read_backbone(source)
    return read.arrays, {"head": [*read.left, *source.others], "batch_counters": len(read.counters)}


def _stages(arrays: Mapping[str, np.ndarray], architecture: str) -> dict[str, dict[str, Any]]:
    """Counts and ranges of each stage; a value that is not finite is None."""
    tensors = backbone_tensors(ARCHITECTURES[architecture])
    stages: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        members = [t for t in tensors if t.detectron2.startswith(f"{stage}.")]
        here = {t.detectron2: arrays[t.torchvision] for t in members}
        convolutions = [a for a in here.values() if a.ndim == 4]
        stages[stage] = {
            "tensors": len(here),
            "parameters": sum(a.size for n, a in here.items() if "running_" not in n),
            "convolution": _moments(convolutions),
        }
        for part in ("weight", "bias", "running_mean", "running_var"):
            vectors = [a for n, a in here.items() if n.endswith(f".norm.{part}")]
            stages[stage][f"norm_{part}"] = _range(vectors)
    return stages


def _moments(arrays: list[np.ndarray]) -> dict[str, float | None]:
    """Mean, standard deviation, least and largest of all numbers together."""
    count = sum(a.size for a in arrays)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = sum(float(a.sum(dtype=np.float64)) for a in arrays) / count
        square = sum(float(np.square(a).sum(dtype=np.float64)) for a in arrays) / count
    variance = square - mean * mean
    least, largest = _range(arrays)
    return {
        "mean": _number(mean),
        "std": _number(math.sqrt(variance) if variance > 0 else variance * 0),
        "min": least,
        "max": largest,
    }


def _range(arrays: list[np.ndarray]) -> list[float | None]:
    return [_number(min(a.min() for a in arrays)), _number(max(a.max() for a in arrays))]


def _number(value: Any) -> float | None:
    """json has no words for nan and infinity."""
    return float(value) if math.isfinite(value) else None
