"""Which row a file's keys fit, and what every key is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moco_det.weights.architectures import UnknownArchitecture, variant
from moco_det.weights.formats.row import Format
from moco_det.weights.stubs import Stub
from moco_det.weights.tensors import TensorRef, tensors_of

Table = dict[str, TensorRef]
EPSILON = 1e-5  # of every batch norm in question
START = ("conv1.weight", "layer1.0.conv1.weight")
PLAINLY = 50  # backbone tensors that leave no doubt; a ResNet-18 has 100


@dataclass(frozen=True)
class Match:
    """A row that fits, with the table it was found in.

    Where a format keeps its encoders in several tables, their keys are joined as
    `container:key`.
    """

    format: Format
    table: Table


@dataclass(frozen=True)
class Sorted:
    """A table's keys by what they are; `tensors` and `counters` are under torchvision's names."""

    tensors: Table
    counters: Table
    other_encoder: int
    head: tuple[str, ...]
    unclaimed: tuple[str, ...]
    twice: tuple[str, ...]


def backbone_name(row: Format, encoder: str, key: str) -> str | None:
    """The torchvision name of a key, or None if it is not this encoder's backbone."""
    for prefix in row.encoders[encoder]:
        match = re.match(prefix, key)
        if match:
            name = row.vocabulary(key[match.end() :])
            if name is not None:
                return name
    return None


def encoders_in(row: Format, table: Mapping[str, TensorRef]) -> tuple[str, ...]:
    """The row's encoders of which the table has a tensor, the default first."""
    return tuple(
        choice
        for choice in row.encoders
        if any(backbone_name(row, choice, key) is not None for key in table)
    )


def sort_keys(row: Format, encoder: str, table: Mapping[str, TensorRef]) -> Sorted:
    """Every key of a table, claimed once: backbone, counter, other encoder, head, or nobody's."""
    tensors: Table = {}
    counters: Table = {}
    head, unclaimed, twice, other = [], [], [], 0
    others = [choice for choice in row.encoders if choice != encoder]
    for key, tensor in table.items():
        name = backbone_name(row, encoder, key)
        if name is not None:
            target = counters if name.endswith("num_batches_tracked") else tensors
            if name in target:
                twice.append(key)
            target[name] = tensor
        elif any(backbone_name(row, choice, key) for choice in others):
            other += 1
        elif any(re.fullmatch(pattern, key) for pattern in row.head):
            head.append(key)
        else:
            unclaimed.append(key)
    if row.affine:
        tensors = _folded(_completed(tensors))
    return Sorted(tensors, counters, other, tuple(head), tuple(unclaimed), tuple(twice))


# Norms without statistics, convolutions with a bias ---------------------------------------------


@dataclass(frozen=True, slots=True)
class _Filled(TensorRef):
    """A constant that the file leaves out; it takes no bytes there."""

    @property
    def nbytes(self) -> int:
        return 0


def _completed(tensors: Table) -> Table:
    """Norms that are a scale and a shift alone get the statistics that change nothing.

    The variance is 1 - epsilon and not 1, so that variance + epsilon is exactly 1 and the layer
    computes the file's scale and shift, bit for bit; with 1 every layer would be off by 5e-6.
    A file with some statistics is left as it is: what it lacks is missing.
    """
    if any("running_" in name for name in tensors):
        return tensors
    filled = dict(tensors)
    variance = np.float32(1) - np.float32(EPSILON)
    for name, tensor in tensors.items():
        norm = re.fullmatch(r"((?:.*\.)?(?:bn[123]|downsample\.1))\.weight", name)
        if norm:
            for part, value in (("running_mean", np.float32(0)), ("running_var", variance)):
                filled[f"{norm[1]}.{part}"] = _constant(tensor.shape, value)
    return filled


def _constant(shape: tuple[int, ...], value: np.float32) -> TensorRef:
    return _Filled("float32", shape, lambda: np.full(shape, value, np.float32))


def _folded(tensors: Table) -> Table:
    """A convolution's bias b goes into the mean of its norm: (x + b) - m = x - (m - b)."""
    folded = dict(tensors)
    for name, bias in tensors.items():
        conv = re.fullmatch(r"(?P<place>(.*\.)?)(conv(?P<n>[123])|downsample\.0)\.bias", name)
        if not conv:
            continue
        norm = f"bn{conv['n']}" if conv["n"] else "downsample.1"
        mean = f"{conv['place']}{norm}.running_mean"
        del folded[name]
        if mean in folded:
            folded[mean] = _difference(folded[mean], bias)
    return folded


def _difference(mean: TensorRef, bias: TensorRef) -> TensorRef:
    if bias.shape != mean.shape:
        raise UnknownArchitecture(f"a convolution's bias is {bias.shape}, its norm {mean.shape}")
    kind = _Filled if isinstance(mean, _Filled) else TensorRef
    return kind("float32", mean.shape, lambda: mean.read() - bias.read())


# Recognition ------------------------------------------------------------------------------------


def matches(root: Any, rows: Iterable[Format]) -> list[Match]:
    """The rows that fit: marker and sign present, stem and first block in the named place.

    A marker settles the matter; among several rows that fit, those that claim every key count.
    Raises UnknownArchitecture for a network that is plainly another kind of ResNet.
    """
    if not isinstance(root, dict):
        return []
    tables: dict[tuple[str, ...], Table] = {}
    found: list[Match] = []
    for row in rows:
        if not _is_marked(row, root):
            continue
        for container in row.containers:
            if container not in tables:
                tables[container] = _joined(root, container)
            table = tables[container]
            if (row.sign is None or row.sign(table)) and _has_start(row, table):
                found.append(Match(row, table))
    found = [match for match in found if match.format.marker is not None] or found
    if len(found) > 1:
        found = [match for match in found if not _unclaimed(match)] or found
    reason = _another_network(root, found, tables.values())
    if reason is not None:
        raise UnknownArchitecture(reason)
    return found


def _is_marked(row: Format, root: Mapping[Any, Any]) -> bool:
    if row.marker is None:
        return True
    key, texts = row.marker
    if key not in root:
        return False
    value = root[key]
    return texts is None or (isinstance(value, str) and value in texts)


def _joined(root: Mapping[Any, Any], container: tuple[str, ...]) -> Table:
    """The tensors of one place, or of several, each key then behind its place's last word."""
    if len(container) == 1:
        return _table(root, container[0])
    return {
        f"{path.rpartition('/')[2]}:{key}": tensor
        for path in container
        for key, tensor in _table(root, path).items()
    }


def _table(root: Any, path: str) -> Table:
    """The tensors of the dict at a path of root keys ("a/b"; "" is the root)."""
    inner = root
    for word in path.split("/") if path else ():
        inner = inner.get(word) if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or isinstance(inner, Stub):
        return {}
    return _uncompiled(tensors_of(inner))


def _uncompiled(table: Table) -> Table:
    """Keys as they are without torch.compile, which calls what it wraps `_orig_mod`.

    Where both forms of one name are there the keys stay: then nobody can say which is meant.
    """
    plain = {re.sub(r"(?<![^.])_orig_mod\.", "", key): tensor for key, tensor in table.items()}
    return plain if len(plain) == len(table) else table


def _has_start(row: Format, table: Table) -> bool:
    """Whether the default encoder's stem and first block are there."""
    default = next(iter(row.encoders))
    wanted = set(START)
    for key in table:
        wanted.discard(backbone_name(row, default, key) or "")
        if not wanted:
            return True
    return False


def nearly(root: Any, rows: Iterable[Format]) -> str | None:
    """Which row's backbone is plainly there but for its first tensors, and which are missing."""
    for row in rows if isinstance(root, dict) else ():
        for container in row.containers if _is_marked(row, root) else ():
            table = _joined(root, container)
            default = next(iter(row.encoders))
            names = {backbone_name(row, default, key) for key in table}
            lacks = [name for name in START if name not in names]
            if lacks and len(names) > PLAINLY and (row.sign is None or row.sign(table)):
                return f"as {row.name} it lacks a plain tensor for {' and '.join(lacks)}"
    return None


def _unclaimed(match: Match) -> tuple[str, ...]:
    return sort_keys(match.format, next(iter(match.format.encoders)), match.table).unclaimed


def _another_network(
    root: Mapping[Any, Any], found: list[Match], tables: Iterable[Table]
) -> str | None:
    """Why this is no ResNet that a detector has, where names tell."""
    if len(found) > 1:
        return None
    if not found:
        return variant(key for table in tables for key in table)
    arch = root.get("arch")  # timm's and torch's training scripts store it
    if isinstance(arch, str) and re.match(r"(se)?resne(x)?t(aa|blur)\d", arch):
        return f"it says to be a {arch[:40]}, which pools with antialiasing"
    return variant(_unclaimed(found[0]))


def first_keys(root: Any, count: int = 5) -> str:
    """The names that a person would look at first, for an error's one line."""
    if not isinstance(root, dict):
        return f"no table of tensors but {type(root).__name__}" if root else "nothing"
    tables = [(f"{k}: ", tensors_of(v)) for k, v in root.items() if isinstance(v, dict)]
    tables.insert(0, ("", tensors_of(root)))
    label, table = max(tables, key=lambda item: len(item[1]))
    if not table:
        keys = ", ".join(str(key)[:60] for key in list(root)[:count])
        return f"no tensors under {keys}" if keys else "an empty table"
    return label + ", ".join(key[:80] for key in list(table)[:count])
