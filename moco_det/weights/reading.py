"""A checkpoint of any known format as one thing: the backbone's tensors and their origin."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moco_det.foundation.errors import InputError
from moco_det.weights.architectures import STAGES, deduce
from moco_det.weights.file_slices import FileState
from moco_det.weights.files import Contents, naming, read_contents, sha256_of
from moco_det.weights.formats import (
    BY_NAME,
    ENCODERS,
    FORMATS,
    RGB_IMAGENET,
    Match,
    encoders_in,
    first_keys,
    matches,
    nearly,
    sort_keys,
)
from moco_det.weights.stubs import Stub
from moco_det.weights.tensors import TensorRef

# Who writes detectron2 files whose input is known though the file does not say it.
KNOWN_AUTHORS: dict[str, Mapping[str, Any]] = {
    "MOCO": RGB_IMAGENET,  # facebookresearch/moco's converter
    "torchvision": RGB_IMAGENET,  # detectron2's own converter
    # converters of other projects; the configs beside each say RGB, these numbers, stride in 3x3
    "OpenSelfSup": RGB_IMAGENET,  # DenseCL's too
    "MMSelfSup": RGB_IMAGENET,
    "PixPro": RGB_IMAGENET,
    "Yonglong": RGB_IMAGENET,  # PyContrast
    "solo-learn": RGB_IMAGENET,
}
KNOWN = ", ".join(row.name for row in FORMATS)


@dataclass(frozen=True)
class SourceCheckpoint:
    """A recognised checkpoint; tensors are fetched only when they are read.

    `tensors` (and `counters`, BN's num_batches_tracked) are under torchvision's names; `input` is
    on the scale 0..255 and None where a detectron2 file does not state it; `origin` and `proven`
    are the `source` and `verified` of a file this project wrote before.
    """

    path: Path
    kind: str
    format: str
    forced: bool
    encoder: str
    encoders: tuple[str, ...]
    encoder_named: bool
    architecture: str
    method: str | None
    input: dict[str, Any] | None
    sha256: str
    size: int
    other_encoder: int
    head: tuple[str, ...]
    foreign: tuple[str, ...]
    tensors: Mapping[str, TensorRef] = field(repr=False)
    counters: Mapping[str, TensorRef] = field(repr=False)
    state: FileState = field(repr=False)
    origin: dict[str, Any] | None = None
    proven: dict[str, Any] | None = None

    def source(self) -> dict[str, Any]:
        """The `source` record of a backbone file; a re-packed backbone keeps its first one."""
        if self.origin is not None:
            return self.origin
        return {
            "format": self.format,
            "method": self.method,
            "arch": self.architecture,
            "sha256": self.sha256,
            "file": shown(self.path.name),
        }

    def array(self, name: str) -> np.ndarray:
        """A backbone tensor's numbers by its torchvision name. Raises InputError, which names the
        file, where they turn out damaged."""
        with naming(self.path):
            return self.tensors[name].read()

    def counter(self, name: str) -> int:
        """How many batches a norm has seen, by the counter's torchvision name; 0 where unknown."""
        reference = self.counters.get(name)
        if reference is None or reference.shape != () or reference.dtype != "int64":
            return 0
        with naming(self.path):
            return int(reference.read().reshape(()))

    def confirm(self) -> None:
        """Raise InputError unless the file is still the one that was read, byte for byte."""
        self.state.check()
        with naming(self.path), open(self.path, "rb") as file:
            same = sha256_of(file) == self.sha256
        self.state.check()
        if not same:  # within the resolution of the file system's clock
            raise InputError(f"{self.path} changed while it was read: try again")


def shown(name: object) -> str:
    """A path as text that can be printed and stored, whatever bytes its name has."""
    return str(name).encode("utf-8", "backslashreplace").decode("utf-8")


def read_checkpoint(
    path: str | Path, *, source_format: str | None = None, encoder: str | None = None
) -> SourceCheckpoint:
    """Read and recognise a checkpoint; no program in it is run.

    `source_format` forces a format of `FORMATS`; `encoder` is one of the format's own,
    by default its first.
    Raises InputError when the file is unreadable, unknown, ambiguous or of an unknown architecture.
    """
    check_choices(source_format, encoder)
    return recognise(read_contents(path), source_format=source_format, encoder=encoder)


def check_choices(source_format: str | None, encoder: str | None) -> None:
    """Raise InputError for a format or an encoder that does not exist."""
    if source_format is not None and source_format not in BY_NAME:
        raise InputError(f"unknown format {source_format!r}: choose from {KNOWN}")
    if encoder is not None and encoder not in ENCODERS:
        raise InputError(f"unknown encoder {encoder!r}: choose from {', '.join(ENCODERS)}")


def recognise(
    contents: Contents, *, source_format: str | None = None, encoder: str | None = None
) -> SourceCheckpoint:
    """What the contents of a file are; arguments and errors of `read_checkpoint`."""
    with naming(contents.path):
        return _recognise(contents, source_format, encoder)


def _recognise(
    contents: Contents, source_format: str | None, encoder: str | None
) -> SourceCheckpoint:
    path = contents.path
    match = _only_match(contents, source_format)
    row = match.format
    choices = encoders_in(row, match.table)
    if encoder is not None and encoder not in choices and len(choices) > 1:
        raise InputError(
            f"{path}: a {row.name} file has the encoders {' and '.join(choices)}, not {encoder}"
        )
    if encoder is not None and encoder not in choices:
        raise InputError(
            f"{path}: this {row.name} file holds the {choices[0]} encoder only, not a {encoder} "
            "encoder beside it: leave --encoder out"
        )
    chosen = encoder or choices[0]
    parts = sort_keys(row, chosen, match.table)
    if parts.twice:
        raise InputError(f"{path}: {parts.twice[0]} names a tensor that another key names too")
    if parts.unclaimed:
        raise InputError(
            f"{path}: {len(parts.unclaimed)} tensors that {row.name} does not have: "
            f"{', '.join(parts.unclaimed[:5])}; if this is another format, name it with --from"
        )
    architecture = deduce({name: tensor.shape for name, tensor in parts.tensors.items()})
    claimed = sum(tensor.nbytes for tensor in parts.tensors.values())
    if claimed > contents.size:
        raise InputError(
            f"{path} has {contents.size} bytes, but its tensors would be {claimed}: several names "
            "share one memory, which no trained network's do"
        )
    root = contents.root if isinstance(contents.root, dict) else {}
    return SourceCheckpoint(
        path=path,
        kind=contents.kind,
        format=row.name,
        forced=source_format is not None,
        encoder=chosen,
        encoders=choices,
        encoder_named=encoder is not None,
        architecture=architecture,
        method=_text(root.get("method")),
        input=_input(contents, match),
        sha256=contents.sha256,
        size=contents.size,
        other_encoder=parts.other_encoder,
        head=parts.head,
        foreign=contents.foreign,
        tensors=parts.tensors,
        counters=parts.counters,
        state=contents.state,
        origin=_origin(contents),
        proven=_proven(contents),
    )


def _only_match(contents: Contents, source_format: str | None) -> Match:
    path, root = contents.path, contents.root
    seen = first_keys(root)
    seen = seen if seen.isprintable() else ascii(seen)
    rows = [BY_NAME[source_format]] if source_format else [f for f in FORMATS if f.recognised]
    found = matches(root, rows)
    if len(found) == 1:
        return found[0]
    if found:
        names = sorted({match.format.name for match in found})
        raise InputError(
            f"{path} holds more than one encoder that could be meant (as {', '.join(names)}; "
            f"first keys {seen}): name one with --from, or save only that one"
        )
    stamp = root.get("format") if isinstance(root, dict) else None
    if isinstance(stamp, str) and stamp.startswith("moco-det/") and stamp != "moco-det/1":
        raise InputError(f"{path} is {stamp[:40]}, which a newer version wrote: update moco-det")
    whole = next((value for value in _likely(root) if isinstance(value, Stub)), None)
    if whole is not None:
        raise InputError(
            f"{path} holds a whole {whole.origin} object, which is not opened: "
            "save its state_dict()"
        )
    if "torch.storage._load_from_bytes" in contents.foreign:
        raise InputError(
            f"{path} holds tensors that were pickled without torch.save: load it with what made "
            "it, and torch.save the state_dict"
        )
    if source_format:
        raise InputError(
            f"{path} is not a {source_format} checkpoint: found {seen}; "
            "leave --from out to have the format recognised"
        )
    near = nearly(root, rows)
    raise InputError(
        f"{path} is of no known format: found {seen}; {near + '; ' if near else ''}known are "
        f"{KNOWN} (see docs/weights.md; --from names one)"
    )


def _likely(root: Any) -> list[Any]:
    """The places where a network lies in a checkpoint."""
    if not isinstance(root, dict):
        return [root]
    return [
        root[key] for key in ("model", "net", "network", "encoder", "state_dict") if key in root
    ]


def _text(value: Any) -> str | None:
    """A short text that can be printed and stored, or None."""
    fine = isinstance(value, str) and value.isprintable() and len(value) <= 300
    return value if fine else None


def _record(contents: Contents, key: str) -> dict[str, Any]:
    """A dict that this project stores beside the weights; empty if it is not there."""
    value: Any = None
    if key in contents.metadata:
        try:
            value = json.loads(contents.metadata[key])
        except (ValueError, TypeError, RecursionError):
            value = None
    elif isinstance(contents.root, dict) and contents.root.get("__author__") == "moco_det":
        value = contents.root.get(key)
    return value if isinstance(value, dict) else {}


def _origin(contents: Contents) -> dict[str, Any] | None:
    """The `source` record; only what this project writes, because it is written again."""
    record = _record(contents, "source")
    texts = {key: _text(record.get(key)) for key in ("format", "method", "arch", "sha256", "file")}
    return texts if texts["format"] and texts["arch"] and texts["sha256"] else None


def _proven(contents: Contents) -> dict[str, Any] | None:
    """The `verified` record, if it is there and whole."""
    record = _record(contents, "verified")
    stages = record.get("per_stage")
    if not isinstance(stages, dict) or list(stages) != list(STAGES):
        return None
    numbers = [record.get("max_abs_difference"), *stages.values()]
    if not all(type(number) is float and math.isfinite(number) for number in numbers):
        return None
    return {"max_abs_difference": numbers[0], "per_stage": dict(stages)}


def _input(contents: Contents, match: Match) -> dict[str, Any] | None:
    """Channel order, mean and std (0..255) and stride placement, as stated or as the row says."""
    root = contents.root
    stated: Any = None
    if "input" in contents.metadata:
        try:
            stated = json.loads(contents.metadata["input"])
        except (ValueError, TypeError, RecursionError):
            stated = "damaged"
    elif isinstance(root, dict) and match.format.input is None:
        stated = root.get("input")
    if match.format.input is not None and (stated is None or not match.format.recognised):
        return dict(match.format.input)
    if stated is not None:
        checked = _checked_input(stated, scale=255.0 if match.format.name == "moco-det/1" else 1.0)
        if checked is None:
            raise InputError(
                f"{contents.path}: its input record is damaged: save or convert it again"
            )
        return checked
    author = root.get("__author__") if isinstance(root, dict) else None
    known = KNOWN_AUTHORS.get(author) if isinstance(author, str) else None
    if match.format.name == "moco-det/1":
        raise InputError(f"{contents.path} does not say what its encoder was fed: save it again")
    return dict(known) if known is not None else None


def _checked_input(stated: Any, *, scale: float) -> dict[str, Any] | None:
    if not isinstance(stated, dict) or stated.get("format") not in ("RGB", "BGR"):
        return None
    numbers = []
    for key in ("mean", "std"):
        values = stated.get(key)
        if not isinstance(values, (list, tuple)) or len(values) != 3:
            return None
        if any(not isinstance(v, (int, float)) or not abs(v) < 1e9 for v in values):
            return None
        numbers.append([round(float(v) * scale, 6) for v in values])
    if any(value <= 0 for value in numbers[1]):
        return None
    return {
        "format": stated["format"],
        "mean": numbers[0],
        "std": numbers[1],
        "stride_in_1x1": bool(stated.get("stride_in_1x1", False)),
    }
