"""What a checkpoint file is, for a person or a program; nothing is converted, no torch needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import STAGES, backbone_tensors
from moco_det.weights.files import Contents, naming, read_contents
from moco_det.weights.proof import check_numbers, kaiming_ratio, untrained
from moco_det.weights.reading import SourceCheckpoint, check_choices, recognise, shown
from moco_det.weights.tensors import FLOATING, tensors_of

SCHEMA = "moco-det/inspect/1"
OF_A_FORMAT = (  # the keys of `describe`
    *("format", "architecture", "method", "encoder", "encoders", "input", "backbone_tensors"),
    *("parameters", "dtypes", "head", "other_encoder_tensors", "batch_counters", "stages"),
    *("finite", "least_variance", "convolution_std_over_kaiming", "random_looking"),
    *("source", "verified"),
)
SHOWN_TENSORS = 8  # of each table of a file that no format claims


def summary_lines(source: SourceCheckpoint) -> list[str]:
    """File, format, architecture, encoder and input of a checkpoint, one line each."""
    how = "named by --from" if source.forced else "recognised from its keys"
    if len(source.encoders) == 1:
        encoder = "the only one"
    elif source.encoder_named:
        encoder = source.encoder
    else:
        encoder = f"{source.encoder} (the default; also there: {', '.join(source.encoders[1:])})"
    return [
        f"input         {shown(source.path)} ({source.kind}), sha256 {source.sha256}",
        f"format        {source.format} ({how})",
        f"architecture  {source.architecture} ({ARCHITECTURES[source.architecture]})",
        f"encoder       {encoder}",
        f"pixels        {_pixels(source.input)}",
    ]


def _pixels(stated: Mapping[str, Any] | None) -> str:
    if stated is None:
        return "not stated in the file"
    stride = "1x1" if stated["stride_in_1x1"] else "3x3"
    return (
        f"{stated['format']}, mean {stated['mean']}, std {stated['std']}, "
        f"stride in the {stride} convolution"
    )


def read_arrays(source: SourceCheckpoint) -> dict[str, np.ndarray]:
    """The backbone's numbers under torchvision's names, in the order of the forward pass."""
    order = backbone_tensors(ARCHITECTURES[source.architecture])
    for tensor in order:
        kind = source.tensors[tensor.torchvision].dtype
        if kind not in FLOATING:
            raise InputError(
                f"{source.path}: {tensor.torchvision} holds {kind}, no network's weights: "
                "save the weights as float32"
            )
    return {t.torchvision: source.array(t.torchvision) for t in order}


def unstated_input(path: Path) -> str:
    """What to do about a file that does not say what its network was fed."""
    return (
        f"{path} does not say in which channel order its network was trained: name it "
        "with --from detectron2-rgb or --from detectron2-msra (BGR, std 1, stride in 1x1)"
    )


def inspect(
    path: str | Path, *, source_format: str | None = None, encoder: str | None = None
) -> dict[str, Any]:
    """Everything `--inspect` shows, as plain data that json can hold; docs/weights.md has the keys.

    A file that cannot be converted is described as far as it is understood, with the reason under
    "problem". Raises InputError for what is no readable checkpoint at all.
    """
    check_choices(source_format, encoder)
    contents = read_contents(path)
    with naming(contents.path):
        facts = _facts_of_file(contents)
    try:
        source = recognise(contents, source_format=source_format, encoder=encoder)
        arrays = read_arrays(source)
        facts.update(describe(source, arrays))
        if source.input is None:
            raise InputError(unstated_input(source.path))
        check_numbers(arrays, path=source.path)
    except InputError as error:
        facts.update(convertible=False, problem=shown(error))
    contents.state.check()
    return facts


def _facts_of_file(contents: Contents) -> dict[str, Any]:
    """What can be said of any file; what needs a format is None."""
    return {
        "schema": SCHEMA,
        "file": shown(contents.path),
        "stored_as": contents.kind,
        "bytes": contents.size,
        "sha256": contents.sha256,
        "convertible": True,
        "problem": None,
        "tables": _tables(contents.root),
        "foreign_objects": list(contents.foreign),
        "warnings": [],
        **dict.fromkeys(OF_A_FORMAT),
    }


def _tables(root: Any) -> list[dict[str, Any]]:
    """The dicts of tensors in a file: the root, and one level below it."""
    if not isinstance(root, dict):
        return []
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


def describe(source: SourceCheckpoint, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The facts of a recognised checkpoint and its backbone's arrays; proves nothing."""
    random_looking = untrained(arrays)
    variances = [a for name, a in arrays.items() if name.endswith("running_var")]
    ratios = [kaiming_ratio(a) for a in arrays.values() if a.ndim == 4]
    return {
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
        "stages": _stages(arrays, source.architecture),
        "finite": all(bool(np.isfinite(a).all()) for a in arrays.values()),
        "least_variance": _number(min(a.min() for a in variances)),
        "convolution_std_over_kaiming": [_number(min(ratios)), _number(max(ratios))],
        "random_looking": random_looking is not None,
        "warnings": [] if random_looking is None else [random_looking],
        "source": source.origin,
        "verified": source.proven,
    }


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
            least, largest = min(a.min() for a in vectors), max(a.max() for a in vectors)
            stages[stage][f"norm_{part}"] = [_number(least), _number(largest)]
    return stages


def _moments(arrays: list[np.ndarray]) -> dict[str, float | None]:
    """Mean, standard deviation, least and largest of all numbers together."""
    count = sum(a.size for a in arrays)
    with np.errstate(over="ignore", invalid="ignore"):
        mean = sum(float(a.sum(dtype=np.float64)) for a in arrays) / count
        square = sum(float(np.square(a).sum(dtype=np.float64)) for a in arrays) / count
    variance = square - mean * mean
    return {
        "mean": _number(mean),
        "std": _number(math.sqrt(variance) if variance > 0 else variance * 0),
        "min": _number(min(a.min() for a in arrays)),
        "max": _number(max(a.max() for a in arrays)),
    }


def _number(value: Any) -> float | None:
    """json has no words for nan and infinity."""
    return float(value) if math.isfinite(value) else None


# For a person ---------------------------------------------------------------------------------


def table_lines(facts: Mapping[str, Any]) -> list[str]:
    """The facts of `inspect` as a table."""
    rows: list[tuple[str, str]] = [
        ("file", f"{facts['file']} ({facts['stored_as']}, {facts['bytes']:,} bytes)"),
        ("sha256", facts["sha256"]),
        ("format", facts["format"] or "none that is known"),
    ]
    if facts["architecture"] is None:
        rows += [("tensors", _table_text(table)) for table in facts["tables"]] or [
            ("tensors", "none")
        ]
    else:
        rows += _recognised_rows(facts)
    rows.append(("foreign objects", _short(facts["foreign_objects"]) or "none"))
    rows += [("warning", text) for text in facts["warnings"]]
    rows.append(("convertible", "yes" if facts["convertible"] else "no"))
    lines = [f"{name:16s}{text}" for name, text in rows]
    return lines + (_stage_lines(facts["stages"]) if facts["stages"] else [])


def _recognised_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    others = [name for name in facts["encoders"] if name != facts["encoder"]]
    encoder = facts["encoder"] + (f" (also there: {', '.join(others)})" if others else " (alone)")
    verified = facts["verified"]
    return [
        ("architecture", f"{facts['architecture']}, {facts['parameters']:,} parameters"),
        ("tensors", f"{facts['backbone_tensors']} of the backbone, {', '.join(facts['dtypes'])}"),
        ("head", _short(facts["head"]) or "none"),
        ("encoder", encoder),
        ("channel order", _pixels(facts["input"])),
        ("source", _short([f"{k} {v}" for k, v in (facts["source"] or {}).items() if v]) or "-"),
        ("verified", f"{verified['max_abs_difference']:.3g}" if verified else "-"),
    ]


def _table_text(table: Mapping[str, Any]) -> str:
    first = [f"{t['name'][:80]} {'x'.join(map(str, t['shape']))}" for t in table["first"]]
    place = f"under {table['place']!r}" if table["place"] else "at the root"
    return f"{table['tensors']} {place}: {_short(first)}"


def _short(texts: list[str]) -> str:
    more = f" and {len(texts) - 4} more" if len(texts) > 4 else ""
    return ", ".join(texts[:4]) + more


def _stage_lines(stages: Mapping[str, Any]) -> list[str]:
    head = ("parameters", "conv mean", "conv std", "conv min", "conv max")
    lines = [f"{'stage':8s}" + "".join(f"{name:>12s}" for name in head) + f"{'norm variance':>24s}"]
    for stage, facts in stages.items():
        conv = facts["convolution"]
        numbers = "".join(f"{_figure(conv[name]):>12s}" for name in ("mean", "std", "min", "max"))
        least, largest = map(_figure, facts["norm_running_var"])
        lines.append(
            f"{stage:8s}{facts['parameters']:>12,}{numbers}{least + ' to ' + largest:>24s}"
        )
    return lines


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"
