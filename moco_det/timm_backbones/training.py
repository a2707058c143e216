"""What of a timm network is trained, and how: frozen stages, rates by layer, parameters that do not
decay."""

from __future__ import annotations

from fnmatch import fnmatch

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from moco_det.foundation.errors import InputError


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """Its batch norms, also those that have an activation inside."""
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@torch.enable_grad()
def freeze(backbone: nn.Module, image: Tensor, first: nn.Module, parts: int) -> list[nn.Module]:
    """Stop the gradients of the first parts: what lies before the stages, then stage by stage.

    `first` is the stage of stride 4. Modules of timm do not always stand in the order in which they
    are called, so it is autograd that says which parameters a feature of `image` depends on. Gives
    the modules that are now constant.
    """
    entered: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        for module in first.modules()
    ]
    features = list(backbone(image).values())
    for hook in hooks:
        hook.remove()
    last = [entered[0], *features][parts - 1]
    parameters = list(backbone.parameters())
    gradients = torch.autograd.grad(last.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad = gradient is None
    return [
        inner
        for module in backbone.modules()
        if (own := list(module.parameters())) and not any(p.requires_grad for p in own)
        for inner in module.modules()
    ]


def layer_scales(whole: nn.Module, decay: float) -> dict[str, float]:
    """Factor of the learning rate by parameter: `decay` once per layer below the highest.

    The layers are timm's (`group_matcher`) of its `whole` network with a classifier, as in its
    `param_groups_layer_decay`: the classifier, with what timm puts into no layer, is the highest.
    """
    from timm.models import group_parameters

    if not hasattr(whole, "group_matcher"):
        raise InputError("SOLVER.LAYER_DECAY: timm names no layers of this network; set 1")
    matcher = whole.group_matcher(coarse=False)  # type: ignore[operator]
    layers = group_parameters(whole, matcher, reverse=True)
    highest = max(layers.values())
    return {name: decay ** (highest - layer) for name, layer in layers.items()}


def without_decay(network: nn.Module) -> list[str]:
    """The parameters that timm's recipes give no weight decay: vectors, and those it names."""
    named = network.no_weight_decay() if hasattr(network, "no_weight_decay") else ()  # type: ignore[operator]
    return [
        name
        for name, parameter in network.named_parameters()
        if parameter.ndim <= 1 or any(fnmatch(name, pattern) for pattern in named)
    ]
