"""A checkpoint of one of timm's networks: which network, which table of tensors, for which pixels.

Such a file's shapes do not say which network it is (efficientnet_b0 and tf_efficientnet_b0 differ
in their padding alone), so it is named: by --arch, by a config.json beside the file as the Hugging
Face hub has it, or by the entry "arch" of timm's training script. Nothing of timm is imported
before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from moco_det.foundation.errors import InputError
from moco_det.foundation.reading import MOST_LABELS, read_json
from moco_det.foundation.strict_yaml import did_you_mean
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.timm_backbones import PLAIN_STAGES
from moco_det.weights.architectures import STAGES
from moco_det.weights.containers import Contents, input_errors, read_contents
from moco_det.weights.formats import Table
from moco_det.weights.reading import (
    SourceCheckpoint,
    check_format,
    checked_input,
    chosen_encoder,
    origin_of,
    own_value,
    printable,
    proven_of,
    recognise,
    short_text,
)
from moco_det.weights.recognition import first_keys, table_at

CHECKPOINT = "timm-network"
BACKBONE = "timm-backbone"  # a file of this project
TIMM_STAGES = STAGES[1:]  # those of strides 4 to 32
# encoder -> where training scripts keep it, timm's own choice first (timm models/_helpers.py)
TABLES = {"ema": ("state_dict_ema", "model_ema"), "model": ("state_dict", "model")}
ENTRY = "its entry 'arch'"
BESIDE = "config.json beside the file"
# arguments of a model in config.json that leave the features as they are
HARMLESS = {"num_classes", "global_pool", "img_size", "drop_rate", "drop_path_rate"}


@dataclass(frozen=True)
class TimmCheckpoint:
    """A checkpoint of one of timm's networks; tensors are fetched only when they are read.

    `name` is timm's, with the tag behind the dot where one is known, and `architecture` without.
    `input` is on the scale 0..255, with the interpolation and the input size of the training;
    `others` are tensors that --prefix leaves out.
    """

    contents: Contents = field(repr=False)
    format: str
    name: str
    named_by: str
    encoder: str
    encoders: tuple[str, ...]
    encoder_named: bool
    tensors: Table = field(repr=False)
    others: tuple[str, ...]
    input: dict[str, Any]
    input_from: str
    origin: dict[str, Any] | None = None
    proven: dict[str, Any] | None = None

    @property
    def path(self) -> Path:
        return self.contents.path

    @property
    def sha256(self) -> str:
        return self.contents.sha256

    @property
    def architecture(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_backbone(self) -> bool:
        """Whether an engine can load the file as it is."""
        return self.format == BACKBONE

    def source(self) -> dict[str, Any]:
        """The `source` record of a backbone file; a re-packed backbone keeps its first one."""
        return self.origin or {
            "format": self.format,
            "method": short_text(self.contents.entries.get("method")),
            "arch": self.name,
            "sha256": self.sha256,
            "file": printable(self.path.name),
        }

    def known_input(self) -> dict[str, Any]:
        """`input`, which such a checkpoint always has."""
        return self.input

    def arrays(self) -> dict[str, np.ndarray]:
        """The numbers of a backbone file, under timm's names."""
        with input_errors(self.path):
            return {name: tensor.read() for name, tensor in self.tensors.items()}


AnyCheckpoint = SourceCheckpoint | TimmCheckpoint


def read_any(
    path: str | Path,
    *,
    source_format: str | None = None,
    encoder: str | None = None,
    prefix: str | None = None,
    arch: str | None = None,
) -> AnyCheckpoint:
    """A ResNet's checkpoint as `read_checkpoint` reads it, else one of a named network of timm."""
    check_format(source_format)
    return recognise_any(
        read_contents(path),
        source_format=source_format,
        encoder=encoder,
        prefix=prefix,
        arch=arch,
    )


def recognise_any(
    contents: Contents,
    *,
    source_format: str | None = None,
    encoder: str | None = None,
    prefix: str | None = None,
    arch: str | None = None,
) -> AnyCheckpoint:
    """What the contents of a file are; arguments and errors of `read_any`."""
    if arch is not None:
        if source_format is not None:
            raise InputError(f"--from {source_format} is for ResNets: leave it or --arch out")
        return _checkpoint(contents, known_name(arch, "--arch"), "--arch", encoder, prefix)
    if source_format is None:
        own = _own_backbone(contents)
        if own is not None:
            return own
    try:
        return recognise(contents, source_format=source_format, encoder=encoder, prefix=prefix)
    except InputError:
        named = None if source_format else _named(contents)
        if named is None:
            raise
    return _checkpoint(contents, *named, encoder, prefix)


# Which network ----------------------------------------------------------------------------------


def known_name(name: str, given_by: str) -> str:
    """A name of timm's, with or without a tag; InputError, with the nearest, for another."""
    timm = _timm()
    base, _, tag = name.partition(".")
    if base in ARCHITECTURES:
        raise InputError(
            f"{given_by} {name}: which ResNet a file holds is read from its shapes: leave it out"
        )
    if base not in timm.list_models():
        hint = did_you_mean(base, timm.list_models(), most=3)
        raise InputError(f"{given_by} {name} is no model of timm {timm.__version__}{hint}")
    tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{base}.*")]
    if tag and tag not in tags:
        hint = did_you_mean(tag, tags, most=3) or f": it has {', '.join(tags) or 'none'}"
        raise InputError(f"{given_by} {name}: timm has no weights {tag} of {base}{hint}")
    return name


def _named(contents: Contents) -> tuple[str, str] | None:
    """The network that is named in the file or beside it, no ResNet, and where."""
    described = _beside_file(contents.path)
    if described is not None:
        name, base = described[0], described[0].partition(".")[0]
        if base in ARCHITECTURES:
            return None
        known_name(base, BESIDE)
        return name, BESIDE
    arch = contents.entries.get("arch")  # of timm's training script, but of many others too
    if not isinstance(arch, str) or arch.partition(".")[0] in ARCHITECTURES:
        return None
    try:
        return known_name(arch, ENTRY), ENTRY
    except InputError:
        return None


def _beside_file(path: Path) -> tuple[str, Mapping[str, Any]] | None:
    """The network of a config.json as the Hugging Face hub has it for timm, and its pixels."""
    file = path.with_name("config.json")
    if not file.is_file():
        return None
    found = read_json(file, "the network's description", MOST_LABELS)
    name = found.get("architecture") if isinstance(found, dict) else None
    if not isinstance(name, str):
        return None
    cfg = found.get("pretrained_cfg", found)
    arguments = found.get("model_args")
    other = sorted(arguments.keys() - HARMLESS) if isinstance(arguments, dict) else []
    if other:
        raise InputError(
            f"{file}: its model_args {', '.join(other)} make another {name}, which no config can "
            "name: convert weights of a network that timm has by its name"
        )
    if not isinstance(cfg, dict):
        raise InputError(f"{file}: its pretrained_cfg is no table: fetch it again")
    tag = cfg.get("tag")
    return (f"{name}.{tag}" if tag and "." not in name else name), cfg


def _timm() -> ModuleType:
    from moco_det.timm_backbones.network import import_timm  # imports torch

    return import_timm()


# For which pixels -------------------------------------------------------------------------------


def _pixels(contents: Contents, name: str) -> tuple[str, dict[str, Any], str]:
    """The name with its tag, what the network was fed, and who says so.

    A config.json of that network says it, else timm. InputError where timm's weights of the name
    were fed differently, and no tag says which are meant.
    """
    base, _, tag = name.partition(".")
    described = _beside_file(contents.path)
    if described is not None and name in (described[0], described[0].partition(".")[0]):
        stated = _checked(described[1], scale=255.0)
        if stated is None:
            raise InputError(
                f"{contents.path.with_name('config.json')} states no mean and std: add them to its "
                "pretrained_cfg, or move it away and name the network by --arch"
            )
        return described[0], stated, BESIDE
    timm = _timm()
    cfgs = {one: timm.get_pretrained_cfg(one) for one in timm.list_pretrained(f"{base}.*")}
    kinds: dict[tuple[Any, Any], str] = {}
    for one, cfg in cfgs.items():
        kinds.setdefault((tuple(cfg.mean), tuple(cfg.std)), one)
    if not tag and len(kinds) > 1:
        shown = " or ".join(f"--arch {one} (mean {mean})" for (mean, _), one in kinds.items())
        raise InputError(
            f"{contents.path}: timm's weights of {base} were fed differently: name one that was "
            f"fed as these, as {shown}"
        )
    cfg = timm.get_pretrained_cfg(name)
    said = f"timm's {base}.{cfg.tag}" if cfg.tag else f"timm's {base}"
    stated = _checked(cfg.to_dict(), scale=255.0)
    assert stated is not None
    return name, stated, said


def _checked(stated: Any, *, scale: float) -> dict[str, Any] | None:
    """The part of a network's description that a detector needs, or None where it is not whole."""
    whole = (
        checked_input({"format": "RGB", **stated}, scale=scale)
        if isinstance(stated, dict)
        else None
    )
    if whole is None:
        return None
    del whole["stride_in_1x1"]
    size = stated.get("input_size")
    fine = isinstance(size, (list, tuple)) and all(type(n) is int and 0 < n < 2**31 for n in size)
    return {
        **whole,
        "interpolation": short_text(stated.get("interpolation")),
        "input_size": list(size) if fine else None,
    }


# Which tensors ----------------------------------------------------------------------------------


def _checkpoint(
    contents: Contents, name: str, named_by: str, encoder: str | None, prefix: str | None
) -> TimmCheckpoint:
    path = contents.path
    with input_errors(path):
        places = {
            choice: place
            for choice, words in TABLES.items()
            for place in reversed(words)
            if table_at(contents.root, place)
        } or {"model": ""}
        first, _, behind = (prefix or "").strip(".").partition(".")
        if first and table_at(contents.root, first):  # a table of another name, as DINO's "teacher"
            places, prefix = {"model": first}, behind
        choices = tuple(places)
        chosen = chosen_encoder(path, CHECKPOINT, choices, encoder)
        place = places[chosen]
        whole = table_at(contents.root, place)
        passed = [word for word in _tables(contents.root) if word != place]
    table = {key.removeprefix("module."): tensor for key, tensor in whole.items()}
    if len(table) < len(whole):
        twice = next(key for key in whole if f"module.{key}" in whole)
        raise InputError(
            f"{path} holds {twice} and module.{twice}: save the one that is meant alone"
        )
    start = f"{prefix.strip('.')}." if prefix else ""
    tensors = {key.removeprefix(start): t for key, t in table.items() if key.startswith(start)}
    if not tensors and passed and not place:
        raise InputError(
            f"{path} holds its tensors in {', '.join(passed)}: name one, and what its names begin "
            f"with, by --prefix; {passed[0]} has {first_keys(contents.root[passed[0]], 2)}"
        )
    if not tensors:
        where = f" behind --prefix {prefix}" if prefix else ""
        raise InputError(f"{path} holds no tensors{where}: found {first_keys(contents.root)}")
    full, pixels, said = _pixels(contents, name)
    return TimmCheckpoint(
        contents=contents,
        format=CHECKPOINT,
        name=full,
        named_by=named_by,
        encoder=chosen,
        encoders=choices,
        encoder_named=encoder is not None,
        tensors=tensors,
        others=(
            *(key for key in table if not key.startswith(start)),
            *(f"the table {word}" for word in passed if word not in places.values()),
        ),
        input=pixels,
        input_from=said,
    )


def _tables(root: Any) -> list[str]:
    """The keys of a file whose values are tables of tensors."""
    names = root if isinstance(root, dict) else {}
    return [key for key in names if isinstance(key, str) and table_at(root, key)]


def _own_backbone(contents: Contents) -> TimmCheckpoint | None:
    """A backbone file of this project, which says all of itself; None for any other file."""
    name, origin = short_text(own_value(contents, "architecture")), origin_of(contents)
    if name is None or origin is None:
        return None
    pixels = _checked(own_value(contents, "input"), scale=1.0)
    if pixels is None:
        raise InputError(f"{contents.path}: its input record is damaged: convert it again")
    with input_errors(contents.path):
        tensors = table_at(contents.root, "model") or table_at(contents.root, "")
    return TimmCheckpoint(
        contents=contents,
        format=BACKBONE,
        name=name,
        named_by="the file itself",
        encoder="model",
        encoders=("model",),
        encoder_named=False,
        tensors=tensors,
        others=(),
        input=pixels,
        input_from="the file itself",
        origin=origin,
        proven=proven_of(contents, TIMM_STAGES, PLAIN_STAGES),
    )
