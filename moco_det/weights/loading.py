"""Weights into a detector of either engine, with a statement of what stays random.

Both engines name their tensors alike, so the rule that nothing is initialised in silence
is written once: the set of tensors that a file must fill is computed from the model, and any other
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

from moco_det.foundation.checkpoints import load_checkpoint
from moco_det.foundation.commands import command
from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import flatten
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.results.matched import INPUT_KEYS, check_input
from moco_det.timm_backbones.network import BODY, TimmBackbone
from moco_det.weights.architectures import UnknownArchitecture, deduce
from moco_det.weights.backbone import Backbone, check_exists, load_backbone
from moco_det.weights.containers import input_errors, lookalike, read_contents
from moco_det.weights.download import local_path
from moco_det.weights.file_slices import open_weights
from moco_det.weights.tensors import tensors_of
from moco_det.weights.vocabularies import from_detectron2
from moco_det.weights.writing import as_tensor

# Where a detector keeps its backbone, and what of the name stays: a network of timm or a ResNet
# below an FPN; or (C4, DC5) a ResNet as the backbone itself, with res5 in the heads where there is
# one. The extra norm after res5 (roi_heads.res5.norm) is no part of the ResNet.
TIMM_UNDER_FPN = re.compile(rf"backbone\.bottom_up\.{BODY}\.(.+)")
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
        if self.path is None:
            return (
                f"MODEL.WEIGHTS is empty: all {self.of} backbone tensors and "
                f"{len(self.new_layers)} new layers are randomly initialised, as asked"
            )
        if not self.new_layers:
            return f"{self.tensors} of {self.of} tensors of the whole detector loaded"
        return (
            f"{self.tensors} of {self.of} backbone tensors loaded from {self.path}, "
            f"{len(self.new_layers)} new layers initialised: {', '.join(self.new_layers)}"
        )


def load_weights(cfg: CfgNode, model: nn.Module) -> Loaded:
    """MODEL.WEIGHTS into a detector of either engine, whose keys are the same."""
    fed = {key: value for key, value in flatten(cfg).items() if key in INPUT_KEYS}
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
    file = local_path(path)
    check_exists(file)
    is_run = file.suffix in (".pth", ".pt")
    state = detector_in(file)
    if state is not None and (is_run or fits(model, state)):
        load_model_state(model, state, file)
        of = len(floats(model.state_dict()))
        return Loaded(of, of, (), file, None)
    backbone = load_backbone(file)
    tensors = {name: torch.from_numpy(array) for name, array in backbone.model.items()}
    check_network(model, backbone)
    compare(expected, tensors, file)
    if fed is not None:
        check_input(fed, backbone.input, path)
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(tensors[name])
    return Loaded(len(expected), len(expected), new_layers(model), file, backbone)


def check_network(model: nn.Module, backbone: Backbone) -> None:
    """InputError, with the keys to set, where file and detector differ in a network of timm.

    Its name counts and not its shapes: networks of one shape may differ in what they compute.
    """
    own = next((m.architecture for m in model.modules() if isinstance(m, TimmBackbone)), None)
    found = backbone.architecture
    if found in ARCHITECTURES and own is None or found == own:
        return
    needed = backbone.keys
    if found in ARCHITECTURES:
        resnet = {"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone", "MODEL.TIMM.NAME": "''"}
        needed = resnet | needed
    elif own is not None:
        del needed["MODEL.BACKBONE.NAME"]
    keys = " ".join(f"{key} {value}" for key, value in needed.items())
    raise InputError(
        f"{backbone.path} is a {found}, and the detector's backbone is a {own or 'ResNet'}: set "
        f"{keys}"
    )


def backbone_names(model: nn.Module) -> dict[str, Tensor]:
    """The backbone's tensors by their bare names, counters left out: stem.*, res2.* ... of a
    ResNet, timm's of its networks."""
    state = floats(model.state_dict())
    return {bare: state[name] for name, bare in _bare_names(state).items()}


def new_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers outside the backbone: those that every arm starts from random numbers."""
    state = floats(model.state_dict())
    inside = _bare_names(state)
    return tuple(dict.fromkeys(name.rsplit(".", 1)[0] for name in state if name not in inside))


def _bare_names(names: Iterable[str]) -> dict[str, str]:
    """{name in the detector: bare name} of the backbone's tensors."""
    names = list(names)
    below = (p for p in (TIMM_UNDER_FPN, UNDER_FPN) if any(map(p.fullmatch, names)))
    place = next(below, WITHOUT_FPN)
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
            f"{path} does not fit this model: {len(missing)} tensors missing {first_few(missing)}, "
            f"{len(unexpected)} unexpected {first_few(unexpected)}; "
            + (_other_resnet(expected, given) or "is it a detector with other heads?")
        )
    for name, tensor in expected.items():
        if not isinstance(given[name], Tensor):
            raise InputError(f"{path}: {name} is {type(given[name]).__name__}, no tensor")
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
    there = {name: tensor for name, tensor in bare.items() if isinstance(tensor, Tensor)}
    shapes = {from_detectron2(name): tuple(tensor.shape) for name, tensor in there.items()}
    try:
        return deduce({name: shape for name, shape in shapes.items() if name is not None})
    except UnknownArchitecture:
        return None


def not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter that holds Inf or NaN, or None."""
    wrong = (n for n, p in model.named_parameters() if not bool(torch.isfinite(p).all()))
    return next(wrong, None)


def first_few(names: list[str], limit: int = 4) -> str:
    """The first few names in brackets."""
    more = ", ..." if len(names) > limit else ""
    return "(" + ", ".join(names[:limit]) + more + ")"


def detector_in(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a whole detector, a run's or one of detectron2's model zoo; None of others.

    Nothing in the file is run.
    """
    model = read_contents(path).entries.get("model")
    if not isinstance(model, dict) or not any(str(n).startswith("roi_heads.") for n in model):
        return None
    with input_errors(path):
        return {name: as_tensor(ref.read()) for name, ref in tensors_of(model).items()}


def fits(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has this model's tensors in their shapes."""
    own, given = floats(model.state_dict()), given_tensors(state)
    return {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in given.items()}


def load_model_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Fill the whole model from its own state dict, or raise InputError and fill nothing."""
    check_model_state(model, state, path)
    own = model.state_dict()
    given = {n: t for n, t in state.items() if isinstance(t, Tensor) and n in own}
    fitting = {n: t for n, t in given.items() if t.shape == own[n].shape}  # counters may not
    model.load_state_dict({**own, **fitting})


def check_model_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """InputError unless a state dict is one of this model."""
    compare(floats(model.state_dict()), given_tensors(state), path)


def given_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A detector's state dict without the anchors and pixel statistics some versions write."""
    extra = ("pixel_mean", "pixel_std", "anchor_generator")
    state = {str(n): t for n, t in state.items()}
    return {n: t for n, t in floats(state).items() if not any(word in n for word in extra)}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A run's checkpoint, tensors on the CPU; InputError if it is none."""
    file, _ = open_weights(path)
    with file:
        start = file.read(512)
    other = lookalike(start)
    if other is not None:
        raise InputError(f"{path} {other}")
    content = load_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(
            f"{path} is not a detector's checkpoint; if it is a pre-training checkpoint: "
            f"{command('convert-weights')} {path} weights/{path.stem}.pkl"
        )
    return content
