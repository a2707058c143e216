"""Weights into a detector of either engine, with a statement of what stays random.

Both engines name their tensors alike, so the law that nothing is initialised in silence is
written once: the set of tensors that a file must fill is computed from the model, and any other
missing, unexpected or differently shaped tensor is an error that leaves the model as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import Tensor, nn

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import flatten
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.results.matched import INPUT_KEYS, check_input
from moco_det.weights import Backbone, load_backbone
from moco_det.weights.architectures import UnknownArchitecture, deduce
from moco_det.weights.files import naming, read_contents
from moco_det.weights.formats import from_detectron2
from moco_det.weights.tensors import tensors_of

# Where a detector keeps its ResNet, and what of the name stays: below an FPN; or (C4, DC5) as the
# backbone itself, with res5 in the heads where there is one. The extra norm after res5
# (roi_heads.res5.norm) is no part of the ResNet.
UNDER_FPN = re.compile(r"backbone\.bottom_up\.(.+)")
WITHOUT_FPN = re.compile(r"backbone\.(.+)|roi_heads\.(res5\.\d+\..+)")
COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Loaded:
    """What came from a file and what starts random."""

    tensors: int
    of: int
    new_layers: tuple[str, ...]
    path: Path | None
    backbone: Backbone | None

    def line(self) -> str:
        """One sentence for the log."""
        names = ", ".join(self.new_layers)
        if self.path is None:
            return (
                f"MODEL.WEIGHTS is empty: all {self.of} backbone tensors and "
                f"{len(self.new_layers)} new layers are randomly initialised, as asked"
            )
        if not self.new_layers:
            return f"{self.tensors} of {self.of} tensors of the whole detector loaded"
        return (
            f"{self.tensors} of {self.of} backbone tensors loaded from {self.path}, "
            f"{len(self.new_layers)} new layers initialised: {names}"
        )


def load_weights(cfg: CfgNode, model: nn.Module) -> Loaded:
    """MODEL.WEIGHTS into a detector of either engine, whose keys are the same."""
    flat = flatten(cfg)
    fed = {key: flat[key] for key in INPUT_KEYS}
    return load_initial_weights(model, cfg.MODEL.WEIGHTS, fed=fed)


def load_whole_detector(cfg: CfgNode, model: nn.Module) -> None:
    """MODEL.WEIGHTS into a detector, which must be of the whole detector: else an InputError."""
    if load_weights(cfg, model).new_layers:
        raise InputError(
            f"MODEL.WEIGHTS {cfg.MODEL.WEIGHTS!r} holds no whole detector: name the checkpoint of "
            "a finished run, model_final.pth"
        )


def load_initial_weights(
    model: nn.Module, path: str, *, fed: Mapping[str, Any] | None = None
) -> Loaded:
    """Fill the backbone from a converted file, or the whole detector from a checkpoint of it.

    A whole detector is a run's .pth or a pickle as detectron2's model zoo has them. A pickled
    detector with other heads gives its backbone alone, which `Loaded.line` says.
    Exactly the layers outside the backbone may stay random, and only with a backbone file. Any
    other missing, unexpected or differently shaped tensor is an InputError, and the model is
    left as it was; so is one where `fed`, how the config prepares images (the keys of
    `moco_det.results.matched.INPUT_KEYS`), contradicts what the file says of its own training.
    """
    expected = backbone_names(model)
    if path == "":
        return Loaded(0, len(expected), new_layers(model), None, None)
    if "://" in path:
        name = path.rsplit("/", 1)[-1]
        raise InputError(
            f"MODEL.WEIGHTS {path} is an address, and weights are read from disk alone: download "
            f"it, then python tools/convert_weights.py {name} weights/{Path(name).stem}.pkl"
        )
    file = Path(path)
    if file.suffix in (".pth", ".pt"):
        state = read_checkpoint(file)
        load_model_state(model, state["model"], file)
        of = len(floats(model.state_dict()))
        return Loaded(of, of, (), file, None)
    detector = pickled_detector(file)
    if detector is not None and fits(model, detector):
        load_model_state(model, detector, file)
        of = len(floats(model.state_dict()))
        return Loaded(of, of, (), file, None)
    backbone = load_backbone(file)
    tensors = {name: torch.from_numpy(array) for name, array in backbone.model.items()}
    compare(expected, tensors, file)
    if fed is not None:
        check_input(fed, backbone.input, path)
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(tensors[name])
    return Loaded(len(expected), len(expected), new_layers(model), file, backbone)


def backbone_names(model: nn.Module) -> dict[str, Tensor]:
    """The ResNet's tensors by their bare names (stem.*, res2.* ...), counters left out."""
    state = floats(model.state_dict())
    return {bare: state[name] for name, bare in _bare_names(state).items()}


def new_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers outside the ResNet: those that every arm starts anew."""
    state = floats(model.state_dict())
    inside = _bare_names(state)
    return tuple(dict.fromkeys(name.rsplit(".", 1)[0] for name in state if name not in inside))


def _bare_names(names: Iterable[str]) -> dict[str, str]:
    """{name in the detector: bare name} of the ResNet's tensors."""
    names = list(names)
    place = UNDER_FPN if any(UNDER_FPN.fullmatch(name) for name in names) else WITHOUT_FPN
    found = ((name, place.fullmatch(name)) for name in names)
    return {name: match[match.lastindex or 0] for name, match in found if match}


def floats(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without BN's batch counters, which no published file agrees on."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER)}


def compare(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], path: Path) -> None:
    """InputError unless names and shapes are the same and every number is finite."""
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    if missing or unexpected:
        raise InputError(
            f"{path} does not fit this model: {len(missing)} tensors missing {some(missing)}, "
            f"{len(unexpected)} unexpected {some(unexpected)}; "
            + (_other_resnet(expected, given) or "is it a detector with other heads?")
        )
    for name, tensor in expected.items():
        if tensor.shape != given[name].shape:
            raise InputError(
                f"{path} does not fit this model: {name} has shape {tuple(given[name].shape)}, "
                f"the model needs {tuple(tensor.shape)}; "
                + (_other_resnet(expected, given) or "correct the heads' widths or NUM_CLASSES")
            )
        if not bool(torch.isfinite(given[name]).all()):
            raise InputError(f"{path}: {name} holds Inf or NaN; convert a healthy checkpoint")


def _other_resnet(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """The config keys that the given ResNet needs and the model has not."""
    own, found = _architecture(expected), _architecture(given)
    if found is None or found == own:
        return None
    has = {} if own is None else ARCHITECTURES[own].keys
    keys = (f"{key} {n}" for key, n in ARCHITECTURES[found].keys.items() if has.get(key) != n)
    return f"its ResNet is a {found}: set {' '.join(keys)}"


def _architecture(tensors: Mapping[str, Tensor]) -> str | None:
    """Which ResNet is in a detector's tensors, or in those of a backbone file."""
    bare = {name: tensors[whole] for whole, name in _bare_names(tensors).items()} or tensors
    shapes = {from_detectron2(name): tuple(tensor.shape) for name, tensor in bare.items()}
    try:
        return deduce({name: shape for name, shape in shapes.items() if name is not None})
    except UnknownArchitecture:
        return None


def not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter that holds Inf or NaN, or None."""
    wrong = (n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all()))
    return next(wrong, None)


def some(names: list[str], limit: int = 4) -> str:
    """The first few names in brackets."""
    more = ", ..." if len(names) > limit else ""
    return "(" + ", ".join(names[:limit]) + more + ")"


def pickled_detector(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a detector pickled as in detectron2's model zoo; None of anything else.

    Nothing in the file is run.
    """
    if path.suffix != ".pkl" or not path.is_file():
        return None
    root = read_contents(path).root
    model = root.get("model") if isinstance(root, dict) else None
    if not isinstance(model, dict) or not any(str(n).startswith("roi_heads.") for n in model):
        return None
    with naming(path):
        # numbers of their own: the reader's arrays may be views of the file's bytes
        return {n: torch.from_numpy(ref.read().copy()) for n, ref in tensors_of(model).items()}


def fits(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has this model's tensors in their shapes."""
    own, given = floats(model.state_dict()), given_tensors(state)
    return {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in given.items()}


def load_model_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Fill the whole model from its own state dict, or raise InputError and fill nothing."""
    check_model_state(model, state, path)
    own = model.state_dict()
    model.load_state_dict({name: state.get(name, tensor) for name, tensor in own.items()})


def check_model_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """InputError unless a state dict is one of this model."""
    compare(floats(model.state_dict()), given_tensors(state), path)


def given_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detector's state dict without the anchors and pixel statistics some versions write."""
    extra = ("pixel_mean", "pixel_std", "anchor_generator")
    return {n: t for n, t in floats(state).items() if not any(word in n for word in extra)}


def damage(path: Path) -> str:
    """What is plainly wrong with a checkpoint file, or nothing."""
    try:
        with open(path, "rb") as file:
            start = file.read(256).lstrip().lower()
    except OSError as error:
        return str(error.strerror)
    if not start:
        return "it is empty"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is a web page: the download failed"
    return "it is a git-lfs pointer" if start.startswith(b"version https://git-lfs") else ""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A run's checkpoint, tensors on the CPU; InputError if it is none."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(
            f"checkpoint {path} does not exist: check MODEL.WEIGHTS; a backbone to start from is "
            f"made by `python tools/convert_weights.py CHECKPOINT {path.with_suffix('.pkl')}`"
        ) from None
    except Exception as error:
        # torch's own words advise to switch weights_only off, which would run what is in the file
        reason = damage(path) or f"{type(error).__name__}, nothing in it was run"
        raise InputError(
            f"{path} is no whole checkpoint ({reason}): fetch or save it again"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(
            f"{path} is not a detector's checkpoint; if it is a pre-training checkpoint: "
            f"python tools/convert_weights.py {path} weights/{path.stem}.pkl"
        )
    return content
