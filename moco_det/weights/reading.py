"""A checkpoint of any known format as one thing: the backbone's tensors and their origin."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moco_det.errors import InputError
from moco_det.weights.architectures import UnknownArchitecture, deduce
from moco_det.weights.files import Contents, read_contents
from moco_det.weights.formats import (
    BY_NAME,
    FORMATS,
    RGB_IMAGENET,
    Match,
    first_keys,
    matches,
    sort_keys,
)
from moco_det.weights.tensors import TensorRef

ENCODERS = ("query", "key")
# Who writes detectron2 files whose input is known though the file does not say it.
KNOWN_AUTHORS: dict[str, Mapping[str, Any]] = {
    "MOCO": RGB_IMAGENET,  # facebookresearch/moco's converter
    "torchvision": RGB_IMAGENET,  # detectron2's own converter
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
            "file": self.path.name,
        }


def read_checkpoint(
    path: str | Path, *, source_format: str | None = None, encoder: str | None = None
) -> SourceCheckpoint:
    """Read and recognise a checkpoint; no program in it is run.

    `source_format` forces a format of `FORMATS`; `encoder` is "query" (default) or "key".
    Raises InputError when the file is unreadable, unknown, ambiguous or of an unknown architecture.
    """
    if source_format is not None and source_format not in BY_NAME:
        raise InputError(f"unknown format {source_format!r}: choose from {KNOWN}")
    if encoder is not None and encoder not in ENCODERS:
        raise InputError(f"unknown encoder {encoder!r}: choose query or key")
    contents = read_contents(path)
    match = _recognise(contents, source_format)
    row = match.format
    choices = tuple(row.encoders)
    if encoder is not None and encoder not in choices:
        raise InputError(
            f"{path}: a {row.name} file holds one encoder only, not a {encoder} encoder beside it: "
            "leave --encoder out"
        )
    chosen = encoder or choices[0]
    parts = sort_keys(row, chosen, match.table)
    if not parts.tensors:
        raise InputError(f"{path}: the {row.name} file has no {chosen} encoder: try the other one")
    if parts.twice:
        raise InputError(f"{path}: {parts.twice[0]} names a tensor that another key names too")
    if parts.unclaimed:
        raise InputError(
            f"{path}: {len(parts.unclaimed)} tensors that {row.name} does not have: "
            f"{', '.join(parts.unclaimed[:5])}; if this is another format, name it with --from"
        )
    try:
        architecture = deduce({name: tensor.shape for name, tensor in parts.tensors.items()})
    except UnknownArchitecture as error:
        raise InputError(f"{path}: unsupported architecture: {error}") from None
    root = contents.root if isinstance(contents.root, dict) else {}
    method = root.get("method")
    return SourceCheckpoint(
        path=Path(path),
        kind=contents.kind,
        format=row.name,
        forced=source_format is not None,
        encoder=chosen,
        encoders=choices,
        encoder_named=encoder is not None,
        architecture=architecture,
        method=method if isinstance(method, str) else None,
        input=_input(contents, match),
        sha256=contents.sha256,
        size=contents.size,
        other_encoder=parts.other_encoder,
        head=parts.head,
        foreign=contents.foreign,
        tensors=parts.tensors,
        counters=parts.counters,
        origin=_record(contents, "source", ("format", "arch", "sha256")),
        proven=_record(contents, "verified", ("max_abs_difference",)),
    )


def _recognise(contents: Contents, source_format: str | None) -> Match:
    path, root = contents.path, contents.root
    rows = [BY_NAME[source_format]] if source_format else [f for f in FORMATS if f.recognised]
    found = matches(root, rows)
    if len(found) == 1:
        return found[0]
    if found:
        names = sorted({match.format.name for match in found})
        raise InputError(
            f"{path} holds more than one encoder that could be meant (as {', '.join(names)}; "
            f"first keys {first_keys(root)}): name one with --from, or save only that one"
        )
    stamp = root.get("format") if isinstance(root, dict) else None
    if isinstance(stamp, str) and stamp.startswith("moco-det/") and stamp != "moco-det/1":
        raise InputError(f"{path} is {stamp[:40]}, which a newer version wrote: update moco-det")
    if isinstance(root, dict) and ("blobs" in root or "conv1_w" in root):
        raise InputError(
            f"{path} has Caffe2's names, which are not supported: let detectron2 load and save it"
        )
    if source_format:
        raise InputError(
            f"{path} is not a {source_format} checkpoint: found {first_keys(root)}; "
            "leave --from out to have the format recognised"
        )
    raise InputError(
        f"{path} is of no known format: found {first_keys(root)}; known are {KNOWN} (see "
        "docs/weights.md; --from names one)"
    )


def _record(contents: Contents, key: str, needed: tuple[str, ...]) -> dict[str, Any] | None:
    """A dict that this project stores beside the weights, if it is there and whole."""
    value: Any = None
    if key in contents.metadata:
        try:
            value = json.loads(contents.metadata[key])
        except (ValueError, TypeError, RecursionError):
            value = None
    elif isinstance(contents.root, dict) and contents.root.get("__author__") == "moco_det":
        value = contents.root.get(key)
    if not isinstance(value, dict) or any(name not in value for name in needed):
        return None
    return value


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
            raise InputError(f"{contents.path}: its input record is damaged: {str(stated)[:80]}")
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
        if any(not isinstance(v, (int, float)) or not math.isfinite(v) for v in values):
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
