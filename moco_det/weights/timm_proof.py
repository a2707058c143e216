"""The conversion of one of timm's networks, and its proof.

timm's own reader gives a file's tensors their names in timm; what is kept is what a detector's
backbone has. The proof gives every tensor of the file other numbers, so that each of them
matters, has timm build its own network from them, and compares the two stage by stage.
"""

from __future__ import annotations

import inspect
import logging
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from moco_det.foundation.errors import InputError, one_line
from moco_det.timm_backbones import PLAIN_STAGES
from moco_det.timm_backbones.network import (
    STRIDES,
    TimmBackbone,
    any_size,
    create_network,
    import_timm,
    stages_of,
)
from moco_det.weights.containers import input_errors
from moco_det.weights.proof import INPUT_SEED, INPUT_SHAPE, Undrawn, one_thread
from moco_det.weights.timm_checkpoint import TimmCheckpoint
from moco_det.weights.writing import as_tensor

# Relative to the stage's largest value. Both networks run the same float32 operations, so the
# difference is 0; zeroing a tensor of efficientnet_b0 changes a stage by 2.6e-4 or more.
TOLERANCE = 1e-5
COUNTER = "num_batches_tracked"
FEW = 3  # names in a message
ONLY_TRAINS = ("mask_token", "decoder_")  # of MAE's files, whose encoder they are not


class Place(NamedTuple):
    """Where a tensor lies in a file: from which number on of which of its tensors."""

    name: str
    start: int


@dataclass(frozen=True)
class ReadNetwork:
    """A file's tensors, and where in them the backbone's are, by timm's names."""

    backbone: TimmBackbone
    tensors: dict[str, Tensor]
    places: dict[str, Place]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """float32 arrays under timm's names."""
        return self._arrays(counters=False)

    @property
    def counters(self) -> dict[str, np.ndarray]:
        """The batch counters under timm's names."""
        return self._arrays(counters=True)

    def _arrays(self, *, counters: bool) -> dict[str, np.ndarray]:
        found = converted(self.backbone, self.places, self.tensors)
        return {n: t.numpy() for n, t in found.items() if n.endswith(COUNTER) == counters}

    @property
    def left(self) -> tuple[str, ...]:
        """The file's names of what is no part of the backbone."""
        used = {place.name for place in self.places.values()}
        return tuple(name for name in self.tensors if name not in used)


def read_backbone(source: TimmCheckpoint) -> ReadNetwork:
    """The backbone of a checkpoint; InputError unless it is whole and of the network named."""
    with Undrawn():
        backbone = TimmBackbone(source.architecture).eval().requires_grad_(False)
    tensors = read_tensors(source)
    return ReadNetwork(backbone, tensors, places_in_file(source, backbone, tensors))


def prove(source: TimmCheckpoint, read: ReadNetwork) -> dict[str, float]:
    """Largest feature difference of each stage; InputError beyond TOLERANCE."""
    proof = TimmProof(source, read)
    proof.load(read.backbone, converted(read.backbone, read.places, proof.tensors))
    return proof.differences(read.backbone)


def read_tensors(source: TimmCheckpoint) -> dict[str, Tensor]:
    """Every tensor of the file's table, each in memory of its own."""
    claimed, size = sum(t.nbytes for t in source.tensors.values()), source.contents.state.size
    if claimed > 2 * size:  # a norm under two names, as DINOv3's last one, is no reason
        raise InputError(f"{source.path} has {size} bytes, but its tensors would be {claimed}")
    with input_errors(source.path):
        return {name: as_tensor(ref.read()) for name, ref in source.tensors.items()}


# Names ------------------------------------------------------------------------------------------


def places_in_file(
    source: TimmCheckpoint, backbone: TimmBackbone, tensors: Mapping[str, Tensor]
) -> dict[str, Place]:
    """Where the backbone's tensors are by timm's names, as timm's own reader takes the file.

    InputError unless every one of them is one of the file's or a part of it, as it is or reshaped,
    and all else lies behind the last stage.
    """
    wanted = backbone.network.state_dict()
    given = renamed_by_timm(source, backbone, tensors)
    missing = [name for name in wanted if name not in given and not name.endswith(COUNTER)]
    with Undrawn():
        whole = create_network(source.architecture)
    head = whole.pretrained_cfg.get("classifier") or ()
    classifiers = tuple(f"{word}." for word in ([head] if isinstance(head, str) else head))
    known = whole.state_dict()
    apart = (*classifiers, *(ONLY_TRAINS if backbone.plain else ()))
    unknown = [n for n in given if n not in known and not n.startswith(apart)]
    problem = f"{source.path} is no {source.architecture} ({source.named_by} says so): "
    other = "name the network it is by --arch NAME"
    if missing or unknown:
        raise InputError(
            f"{problem}{len(missing)} tensors missing {_few(missing)}, {len(unknown)} that it does "
            f"not have {_few(unknown)}; {other}, or by --prefix what its names begin with"
        )
    wrong = [n for n, t in wanted.items() if n in given and given[n].shape != t.shape]
    if wrong:
        shown = ", ".join(
            f"{n} is {_text(given[n])} and not {_text(wanted[n])}" for n in wrong[:FEW]
        )
        raise InputError(f"{problem}{shown}; {other}")
    owners = {tensor.untyped_storage().data_ptr(): name for name, tensor in tensors.items()}
    places: dict[str, Place] = {}
    for name in (name for name in wanted if name in given):
        own = owners.get(given[name].untyped_storage().data_ptr(), "")
        if not own or not given[name].is_contiguous():
            raise InputError(
                f"{problem}timm would compute {name} anew from what the file has, as for a window "
                f"or an image of another size; {other}"
            )
        if tensors[own].dtype != wanted[name].dtype:
            kind = source.tensors[own].dtype
            raise InputError(f"{source.path}: {own} holds {kind}, but the network has floats there")
        places[name] = Place(own, int(given[name].storage_offset()))
    check_biases(source, tensors, {name: wanted[name].numel() for name in places}, places)
    return places


def check_biases(
    source: TimmCheckpoint,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    places: Mapping[str, Place],
) -> None:
    """InputError where a part of a qkv.bias is lost that is not zero.

    DINOv3's files have one, of which timm's networks take those of queries and values, or none.
    """
    for name in (name for name in tensors if name.endswith("qkv.bias")):
        rest = tensors[name].clone()
        for taken, (own, start) in places.items():
            if own == name:
                rest[start : start + sizes[taken]] = 0
        mask = tensors.get(f"{name}_mask")
        if mask is not None and mask.shape == rest.shape:
            rest = rest * mask.nan_to_num()
        if rest.any():
            twin = f"{source.architecture}_qkvb"
            way = f": --arch {twin}" if twin in import_timm().list_models() else ""
            raise InputError(
                f"{source.path}: {source.architecture} has no place for all of {name}, whose rest "
                f"is not zero{way}"
            )


def renamed_by_timm(
    source: TimmCheckpoint, backbone: TimmBackbone, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors under timm's names: views, which timm's reader of the network's files makes."""
    module: Any = sys.modules[import_timm().model_entrypoint(source.architecture).__module__]
    reader: Callable[..., Any] | None = getattr(module, "checkpoint_filter_fn", None)
    reader = reader or getattr(module, "_filter_fn", None)  # as the RegNets' is called
    if reader is None:
        return dict(tensors)
    more = [backbone.network] * (len(inspect.signature(reader).parameters) > 1)
    try:
        with redirect_stdout(StringIO()):  # some print what they find
            return dict(reader(dict(tensors), *more))
    except Exception as error:  # of any type: readers expect nothing but their own network
        raise InputError(
            f"{source.path} is no {source.architecture} ({source.named_by} says so): timm does not "
            f"understand it ({type(error).__name__}: {one_line(error)}); it begins with "
            f"{_few(list(tensors))}: name the network it is by --arch NAME"
        ) from None


def converted(
    backbone: TimmBackbone, places: Mapping[str, Place], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The backbone's tensors under timm's names, in their order in the network."""
    found = {}
    for name, tensor in backbone.network.state_dict().items():
        if name in places:
            own, start = places[name]
            found[name] = tensors[own].flatten()[start : start + tensor.numel()].view(tensor.shape)
    return found


def _few(names: list[str]) -> str:
    return f"({', '.join(names[:FEW])}{', ...' if len(names) > FEW else ''})" if names else ""


def _text(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


# The proof --------------------------------------------------------------------------------------


def perturbed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor with its own pattern brought to a size at which it matters, and noise on it.

    A LayerScale of 1e-6 or a bias of 0 would prove nothing. Weights get mean 0 and a deviation of
    1 / sqrt(inputs), so that features neither vanish nor overflow; variances stay positive.
    """
    generator = torch.Generator().manual_seed(INPUT_SEED)
    changed = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            changed[name] = tensor
            continue
        pattern = tensor.double() if tensor.ndim < 2 else tensor.double() - tensor.double().mean()
        rms = float(pattern.square().mean().sqrt())
        own = (pattern / rms).float() if 0 < rms < math.inf else torch.zeros(tensor.shape)
        mixed = own + torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            changed[name] = mixed.abs() + 0.5
        else:
            changed[name] = mixed * (0.5 if tensor.ndim < 2 else (2 * tensor[0].numel()) ** -0.5)
    return changed


class TimmProof:
    """timm's own network, fed by timm from perturbed tensors, and the features it computes."""

    def __init__(self, source: TimmCheckpoint, read: ReadNetwork) -> None:
        self.path = source.path
        self.tensors = perturbed(read.tensors)
        plain = read.backbone.plain
        self.images = torch.randn(INPUT_SHAPE, generator=torch.Generator().manual_seed(INPUT_SEED))
        with Undrawn():
            network = timm_network(source.architecture, self.tensors, self.images, plain=plain)
        with torch.no_grad(), one_thread():
            self.expected = timm_features(network, self.images, plain=plain)

    def load(self, backbone: TimmBackbone, tensors: Mapping[str, Tensor]) -> None:
        """A conversion of `tensors` into the backbone; InputError where one is missing."""
        state = backbone.network.state_dict()
        missing = [name for name in state if name not in tensors and not name.endswith(COUNTER)]
        if missing:
            raise InputError(f"{self.path}: nothing was converted to {missing[0]}")
        backbone.network.load_state_dict({**state, **tensors}, assign=True)

    def differences(self, backbone: TimmBackbone) -> dict[str, float]:
        """Largest absolute feature difference of each stage; InputError beyond TOLERANCE."""
        with torch.no_grad(), one_thread():
            features = backbone(self.images)
        found: dict[str, float] = {}
        for stage, expected in self.expected.items():
            largest = float(expected.abs().max())
            found[stage] = float((expected - features[stage]).abs().max())
            if not 0 < largest < math.inf or not found[stage] <= TOLERANCE * largest:
                raise InputError(
                    f"{self.path}: the converted network differs from timm's at {stage} by "
                    f"{found[stage]:.3g} (largest feature {largest:.3g}): nothing was written"
                )
        return found


def timm_network(name: str, tensors: Mapping[str, Tensor], images: Tensor, *, plain: bool) -> Any:
    """timm's network that gives its stages, its weights loaded by timm itself.

    A plain ViT is made for the size of the images, so that it is timm's loader that interpolates
    its position embeddings, where ours does it for each image anew.
    """
    timm = import_timm()
    classifier = timm.get_pretrained_cfg(name).classifier or ()
    source = {"state_dict": dict(tensors), "classifier": classifier}  # without one it is strict
    own = {"num_classes": 0, "img_size": tuple(images.shape[-2:])}
    staged = {"features_only": True, **any_size(name)}
    logging.disable(logging.WARNING)  # the classifier is not expected, as timm would say
    try:
        with redirect_stdout(StringIO()):
            network = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=source, **(own if plain else staged)
            )
    finally:
        logging.disable(logging.NOTSET)
    return network.eval().requires_grad_(False)


def timm_features(network: Any, images: Tensor, *, plain: bool) -> dict[str, Tensor]:
    """What `timm_network` computes, by stage."""
    if plain:
        *quarters, last = network.forward_intermediates(
            images, indices=list(stages_of(network, network.feature_info).values())
        )[1]
        cells = network.forward_features(images)[:, network.num_prefix_tokens :]
        last = cells.transpose(1, 2).reshape(last.shape)
        return dict(zip(PLAIN_STAGES, [*quarters, last], strict=True))
    features = network(images)
    if getattr(network, "output_fmt", None) == "NHWC":
        features = [feature.permute(0, 3, 1, 2) for feature in features]
    by_stride = dict(zip(network.feature_info.reduction(), features, strict=True))
    return {stage: by_stride[stride] for stage, stride in STRIDES.items()}
