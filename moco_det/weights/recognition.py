"""Whose checkpoint a file is, recognised from its keys, and what every key is.

Nothing is guessed: a name that no format claims, or a file that two formats claim, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moco_det.weights.architectures import UnknownArchitecture, variant
from moco_det.weights.formats import Format, Table
from moco_det.weights.tensors import TensorRef, tensors_of

EPSILON = 1e-5  # of every batch norm in question
START = ("conv1.weight", "layer1.0.conv1.weight")
COUNTED = r"(.*[.:])?n_averaged"  # by torch.optim.swa_utils.AveragedModel beside what it averages
PLAINLY = 50  # backbone tensors that leave no doubt; a ResNet-18 has 100


@dataclass(frozen=True)
class FormatMatch:
    """A format that fits, with the table it was found in.

    Where a format keeps its encoders in several tables, their keys are joined as `table:key`.
    """

    format: Format
    table: Table


@dataclass(frozen=True)
class ClassifiedKeys:
    """A table's keys by what they are; `tensors` and `counters` are under torchvision's names."""

    tensors: Table
    counters: Table
    other_encoder: int
    head: tuple[str, ...]
    unclaimed: tuple[str, ...]
    twice: tuple[str, ...]


def encoders_in(row: Format, table: Table) -> tuple[str, ...]:
    """The format's encoders of which the table has a tensor, the default first."""
    return tuple(
        choice
        for choice in row.encoders
        if any(row.backbone_name(choice, key) is not None for key in table)
    )


def classify_keys(row: Format, encoder: str, table: Table) -> ClassifiedKeys:
    """Every key of a table, claimed once: backbone, counter, other encoder, head, or nobody's."""
    tensors: Table = {}
    counters: Table = {}
    head, unclaimed, twice, other = [], [], [], 0
    others = [choice for choice in row.encoders if choice != encoder]
    for key, tensor in table.items():
        name = row.backbone_name(encoder, key)
        if name is not None:
            target = counters if name.endswith("num_batches_tracked") else tensors
            if name in target:
                twice.append(key)
            target[name] = tensor
        elif any(row.backbone_name(choice, key) for choice in others):
            other += 1
        elif any(re.fullmatch(pattern, key) for pattern in (*row.head, COUNTED)):
            head.append(key)
        else:
            unclaimed.append(key)
    if row.affine:
        tensors = _fold_biases(_add_statistics(tensors))
    return ClassifiedKeys(tensors, counters, other, tuple(head), tuple(unclaimed), tuple(twice))


# Norms without statistics, convolutions with a bias ---------------------------------------------


@dataclass(frozen=True, slots=True)
class AddedTensor(TensorRef):
    """A constant that the file leaves out; it takes no bytes there."""

    @property
    def nbytes(self) -> int:
        return 0


def _add_statistics(tensors: Table) -> Table:
    """Norms that are a scale and a shift alone get the statistics that change nothing.

    The variance is 1 - epsilon and not 1, so that variance + epsilon is exactly 1 and the layer
    computes the file's scale and shift, bit for bit; with 1 every layer would be off by 5e-6.
    A file with some statistics is left as it is: what it lacks is missing.
    """
    if any("running_" in name for name in tensors):
        return tensors

    def constant(shape: tuple[int, ...], value: np.float32) -> TensorRef:
        return AddedTensor("float32", shape, lambda: np.full(shape, value, np.float32))

    completed = dict(tensors)
    for name, tensor in tensors.items():
        norm = re.fullmatch(r"((?:.*\.)?(?:bn[123]|downsample\.1))\.weight", name)
        if norm:
            completed[f"{norm[1]}.running_mean"] = constant(tensor.shape, np.float32(0))
            variance = np.float32(1) - np.float32(EPSILON)
            completed[f"{norm[1]}.running_var"] = constant(tensor.shape, variance)
    return completed


def _fold_biases(tensors: Table) -> Table:
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
    return type(mean)("float32", mean.shape, lambda: mean.read() - bias.read())


# Recognition ------------------------------------------------------------------------------------


def matching_formats(root: Any, rows: Iterable[Format]) -> list[FormatMatch]:
    """The formats that fit: marker and sign present, stem and first block in the named place.

    A marker settles the matter; among several formats that fit, those that claim every key count.
    """
    if not isinstance(root, dict):
        return []
    found = [
        match
        for match in _candidates(root, rows)
        if match.format.shows_in(match.table) and _names(match).issuperset(START)
    ]
    found = [match for match in found if match.format.marker is not None] or found
    if len(found) > 1:
        found = [match for match in found if not unclaimed(match)] or found
    return found


def nearest_format(root: Any, rows: Iterable[Format]) -> str | None:
    """Which backbone is plainly there but for its first tensors, and which are missing."""
    for match in _candidates(root, rows) if isinstance(root, dict) else ():
        names = _names(match)
        lacks = [name for name in START if name not in names]
        if lacks and len(names) > PLAINLY and match.format.shows_in(match.table):
            return f"as {match.format.name} it lacks a plain tensor for {' and '.join(lacks)}"
    return None


def _candidates(root: Mapping[Any, Any], rows: Iterable[Format]) -> Iterator[FormatMatch]:
    """Every format whose marker is there, with each of its places."""
    tables: dict[str, Table] = {}  # by path
    for row in rows:
        for paths in row.tables if row.is_marked(root) else ():
            for path in paths:
                if path not in tables:
                    tables[path] = table_at(root, path)
            if len(paths) == 1:
                yield FormatMatch(row, tables[paths[0]])
            else:
                parts = ((path.rpartition("/")[2], tables[path]) for path in paths)
                joined = {f"{word}:{key}": t for word, table in parts for key, t in table.items()}
                yield FormatMatch(row, joined)


def table_at(root: Any, path: str) -> Table:
    """The tensors of the dict at a path of root keys ("a/b"; "" is the root).

    Keys are as they are without torch.compile, which calls what it wraps `_orig_mod`, and with one
    `module` where wrappers stand in one another; where several forms of one name are there they
    stay: then nobody can say which is meant.
    """
    inner = root
    for word in path.split("/") if path else ():
        inner = inner.get(word) if isinstance(inner, dict) else None
    table = tensors_of(inner) if isinstance(inner, dict) else {}
    plain = {
        re.sub(r"(?<![^.])(module\.)+", "module.", re.sub(r"(?<![^.])_orig_mod\.", "", key)): tensor
        for key, tensor in table.items()
    }
    return plain if len(plain) == len(table) else table


def _names(match: FormatMatch) -> set[str | None]:
    """The torchvision names that the default encoder's keys stand for."""
    default = next(iter(match.format.encoders))
    return {match.format.backbone_name(default, key) for key in match.table}


def unclaimed(match: FormatMatch) -> tuple[str, ...]:
    """The keys that are none of a format's."""
    default = next(iter(match.format.encoders))
    return classify_keys(match.format, default, match.table).unclaimed


def another_network(root: Mapping[Any, Any], match: FormatMatch) -> str | None:
    """Why this is no ResNet that a detector has, where names tell."""
    arch = root.get("arch")  # timm's and torch's training scripts store it
    if isinstance(arch, str) and re.match(r"(se)?resne(x)?t(aa|blur)\d", arch):
        return f"it says to be a {arch[:40]}, which pools with antialiasing"
    return variant(unclaimed(match))


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
