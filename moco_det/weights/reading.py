"""A checkpoint of any known format as one thing: the backbone's tensors and their origin."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import STAGES, backbone_tensors, deduce
from moco_det.weights.containers import Contents, input_errors, read_contents, sha256_of
from moco_det.weights.formats import BY_NAME, RGB_IMAGENET, Table
from moco_det.weights.recognition import FormatMatch, classify_keys, encoders_in
from moco_det.weights.structure import FoundResNet, choose_match, convert_command
from moco_det.weights.tensors import FLOATING

# Who writes detectron2 files whose input is known though the file does not say it: the converters
# of facebookresearch/moco (MOCO), detectron2 (torchvision), DenseCL (OpenSelfSup), PyContrast
# (Yonglong) and the like. The configs beside each say RGB, these numbers, stride in the 3x3.
RGB_AUTHORS = (
    *("MOCO", "torchvision", "OpenSelfSup", "MMSelfSup", "PixPro", "Yonglong", "solo-learn"),
)
# vocabulary -> the formats that name the pixels of a ResNet in it: RGB, and MSRA's BGR
PIXELS_NAMED = {
    "torchvision": ("torchvision", "torchvision-msra"),
    "children": ("torchvision", "torchvision-msra"),
    "detectron2": ("detectron2-rgb", "detectron2-msra"),
}


@dataclass(frozen=True)
class SourceCheckpoint:
    """A recognised checkpoint; tensors are fetched only when they are read.

    `tensors` (and `counters`, BN's num_batches_tracked) are under torchvision's names; `input` is
    on the scale 0..255 and None where a detectron2 file does not state it; `origin` and `proven`
    are the `source` and `verified` of a file this project wrote before. `resnet` is one that no
    format claims, found by its structure, and `prefix` how it was asked for.
    """

    path: Path
    format: str
    forced: bool
    encoder: str
    encoders: tuple[str, ...]
    encoder_named: bool
    architecture: str
    method: str | None
    input: dict[str, Any] | None
    sha256: str
    other_encoder: int
    head: tuple[str, ...]
    tensors: Table = field(repr=False)
    counters: Table = field(repr=False)
    contents: Contents = field(repr=False)
    origin: dict[str, Any] | None = None
    proven: dict[str, Any] | None = None
    resnet: FoundResNet | None = None
    prefix: str | None = None

    @property
    def is_backbone(self) -> bool:
        """Whether an engine can load the file as it is."""
        return self.format == "detectron2"

    def source(self) -> dict[str, Any]:
        """The `source` record of a backbone file; a re-packed backbone keeps its first one."""
        if self.origin is not None:
            return self.origin
        settings = short_text(self.contents.entries.get("settings"))
        return {
            "format": self.format,
            "method": self.method,
            "arch": self.architecture,
            "sha256": self.sha256,
            "file": printable(self.path.name),
            # of a pre-training made here: a digest that all its starts share
            **({"settings": settings} if settings and self.format == "moco-det/1" else {}),
        }

    def array(self, name: str) -> np.ndarray:
        """A backbone tensor's numbers by its torchvision name. Raises InputError, which names the
        file, where they turn out damaged."""
        with input_errors(self.path):
            return self.tensors[name].read()

    def arrays(self) -> dict[str, np.ndarray]:
        """The backbone's numbers under torchvision's names, in the order of the forward pass."""
        names = [t.torchvision for t in backbone_tensors(ARCHITECTURES[self.architecture])]
        for name in names:
            kind = self.tensors[name].dtype
            if kind not in FLOATING:
                raise InputError(
                    f"{self.path}: {name} holds {kind}, no network's weights: "
                    "save the weights as float32"
                )
        return {name: self.array(name) for name in names}

    def known_input(self) -> dict[str, Any]:
        """`input`; raises InputError, with what to do, where the file does not state it."""
        if self.input is None:
            words = self.resnet.match.format.names if self.resnet else "detectron2"
            rgb, msra = PIXELS_NAMED[words]
            what = f" (a {self.architecture} {self.resnet.where})" if self.resnet else ""
            again = () if self.prefix is None else ("--prefix", self.prefix)
            raise InputError(
                f"{self.path}{what} does not say in which channel order its network was trained: "
                f"`{convert_command(self.path, *again, '--from', rgb)}` for RGB with ImageNet's "
                f"mean and std, or with --from {msra} for BGR, std 1 and the stride in 1x1"
            )
        return self.input

    def counter(self, name: str) -> int:
        """How many batches a norm has seen, by the counter's torchvision name; 0 where unknown."""
        reference = self.counters.get(name)
        if reference is None or reference.shape != () or reference.dtype != "int64":
            return 0
        with input_errors(self.path):
            return int(reference.read().reshape(()))


def confirm(contents: Contents) -> None:
    """Raise InputError unless the file is still the one that was read, byte for byte."""
    contents.state.check()
    with input_errors(contents.path), open(contents.path, "rb") as file:
        same = sha256_of(file) == contents.sha256
    contents.state.check()
    if not same:  # within the resolution of the file system's clock
        raise InputError(f"{contents.path} changed while it was read: try again")


def printable(name: object) -> str:
    """A path as text that can be printed and stored, whatever bytes its name has."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def read_checkpoint(
    path: str | Path,
    *,
    source_format: str | None = None,
    encoder: str | None = None,
    prefix: str | None = None,
) -> SourceCheckpoint:
    """Read and recognise a checkpoint; no program in it is run.

    `source_format` forces a format of `FORMATS`; `encoder` is one of the format's own,
    by default its first; `prefix` names a ResNet by what its names begin with.
    Raises InputError when the file is unreadable, unknown, ambiguous or of an unknown architecture.
    """
    check_format(source_format)
    contents = read_contents(path)
    return recognise(contents, source_format=source_format, encoder=encoder, prefix=prefix)


def check_format(source_format: str | None) -> None:
    """Raise InputError for a format that does not exist."""
    if source_format is not None and source_format not in BY_NAME:
        raise InputError(f"unknown format {source_format!r}: choose from {', '.join(BY_NAME)}")


def recognise(
    contents: Contents,
    *,
    source_format: str | None = None,
    encoder: str | None = None,
    prefix: str | None = None,
) -> SourceCheckpoint:
    """What the contents of a file are; arguments and errors of `read_checkpoint`."""
    path = contents.path
    with input_errors(path):
        match, resnet = choose_match(contents, source_format, prefix)
        row = match.format
        choices = encoders_in(row, match.table)
        chosen = chosen_encoder(path, row.name, choices, encoder)
        keys = classify_keys(row, chosen, match.table)
        if keys.twice:
            raise InputError(f"{path}: {keys.twice[0]} names a tensor that another key names too")
        if keys.unclaimed:
            raise InputError(
                f"{path}: {len(keys.unclaimed)} tensors that {row.name} does not have: "
                f"{', '.join(keys.unclaimed[:5])}: save the state_dict() of a plain ResNet"
            )
        architecture = deduce({name: tensor.shape for name, tensor in keys.tensors.items()})
        claimed = sum(tensor.nbytes for tensor in keys.tensors.values())
        if claimed > contents.state.size:
            raise InputError(
                f"{path} has {contents.state.size} bytes, but its tensors would be {claimed}: "
                "several names share one memory, which no trained network's do"
            )
        return SourceCheckpoint(
            path=path,
            format=row.name,
            forced=source_format is not None,
            encoder=chosen,
            encoders=choices,
            encoder_named=encoder is not None,
            architecture=architecture,
            method=short_text(contents.entries.get("method")),
            input=_input(contents, match),
            sha256=contents.sha256,
            other_encoder=keys.other_encoder,
            head=keys.head,
            tensors=keys.tensors,
            counters=keys.counters,
            contents=contents,
            origin=origin_of(contents),
            proven=proven_of(contents, STAGES),
            resnet=resnet,
            prefix=prefix,
        )


def chosen_encoder(path: Path, name: str, choices: tuple[str, ...], encoder: str | None) -> str:
    """The encoder that was asked for, by default the first of those in the file."""
    if encoder is None or encoder in choices:
        return encoder or choices[0]
    several = len(choices) > 1
    there = f"encoders {' and '.join(choices)}" if several else f"{choices[0]} encoder only"
    raise InputError(
        f"{path}: this {name} file holds the {there}, not a {encoder} encoder: leave --encoder out"
    )


# What a file says beside its weights ------------------------------------------------------------


def _beside(contents: Contents, key: str) -> Any:
    """The entry of a file's root or of a safetensors header; "damaged" where that is no json."""
    if key in contents.metadata:
        try:
            return json.loads(contents.metadata[key])
        except (ValueError, RecursionError):
            return "damaged"
    return contents.entries.get(key)


def short_text(value: Any) -> str | None:
    """A short text that can be printed and stored, or None."""
    fine = isinstance(value, str) and value.isprintable() and len(value) <= 300
    return value if fine else None


def own_value(contents: Contents, key: str) -> Any:
    """What this project stores beside the weights under a key; None if it is not there."""
    ours = key in contents.metadata or contents.entries.get("__author__") == "moco_det"
    return _beside(contents, key) if ours else None


def own_record(contents: Contents, key: str) -> dict[str, Any]:
    """A dict that this project stores beside the weights; empty if it is not there."""
    value = own_value(contents, key)
    return value if isinstance(value, dict) else {}


def origin_of(contents: Contents) -> dict[str, Any] | None:
    """The `source` record; only what this project writes, because it is written again."""
    record = own_record(contents, "source")
    texts = {
        key: short_text(record.get(key)) for key in ("format", "method", "arch", "sha256", "file")
    }
    if settings := short_text(record.get("settings")):
        texts["settings"] = settings
    return texts if texts["format"] and texts["arch"] and texts["sha256"] else None


def proven_of(contents: Contents, *stages_wanted: Sequence[str]) -> dict[str, Any] | None:
    """The `verified` record, if it is there and of one of these groups of stages."""
    record = own_record(contents, "verified")
    stages = record.get("per_stage")
    if not isinstance(stages, dict) or tuple(stages) not in map(tuple, stages_wanted):
        return None
    numbers = [record.get("max_abs_difference"), *stages.values()]
    if not all(type(number) is float and math.isfinite(number) for number in numbers):
        return None
    return {"max_abs_difference": numbers[0], "per_stage": dict(stages)}


def _input(contents: Contents, match: FormatMatch) -> dict[str, Any] | None:
    """Channel order, mean and std (0..255) and stride placement, as the file or its format says."""
    row = match.format
    if row.name == "resnet":
        return None
    if row.input is not None and (row.by_name_only or "input" not in contents.metadata):
        return dict(row.input)
    stated = _beside(contents, "input")
    if stated is not None:
        checked = checked_input(stated, scale=255.0 if row.name == "moco-det/1" else 1.0)
        if checked is None:
            raise InputError(
                f"{contents.path}: its input record is damaged: save or convert it again"
            )
        return checked
    if row.name == "moco-det/1":
        raise InputError(f"{contents.path} does not say what its encoder was fed: save it again")
    return dict(RGB_IMAGENET) if contents.entries.get("__author__") in RGB_AUTHORS else None


def checked_input(stated: Any, *, scale: float) -> dict[str, Any] | None:
    if not isinstance(stated, dict) or stated.get("format") not in ("RGB", "BGR"):
        return None
    numbers: dict[str, list[float]] = {}
    for key in ("mean", "std"):
        values = stated.get(key)
        if not isinstance(values, (list, tuple)) or len(values) != 3:
            return None
        if any(not isinstance(v, (int, float)) or not abs(v) < 1e9 for v in values):
            return None
        numbers[key] = [round(float(v) * scale, 6) for v in values]
    if min(numbers["std"]) <= 0:
        return None
    in_1x1 = bool(stated.get("stride_in_1x1", False))
    return {"format": stated["format"], **numbers, "stride_in_1x1": in_1x1}
