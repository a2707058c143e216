"""The optimizer that a config's SOLVER describes, the same on both engines."""

from __future__ import annotations

from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn

from moco_det.timm_backbones.network import BODY, TimmBackbone, create_network
from moco_det.timm_backbones.training import layer_scales, without_decay

NORM_LAYERS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
    """SGD or AdamW over the model's trainable parameters.

    On a GPU one kernel for all of them where `fused`; what clips gradients in the optimizer's step
    must not have it, as it leaves them scaled. On a CPU one after another stays in the cache.
    """
    solver = cfg.SOLVER
    groups = parameter_groups(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        layer_decay=solver.LAYER_DECAY,
    )
    on_gpu = next(model.parameters()).is_cuda
    how = {"fused": on_gpu and fused, "foreach": on_gpu and not fused}
    if solver.OPTIMIZER == "AdamW":
        betas = (solver.MOMENTUM, 0.999)
        return torch.optim.AdamW(groups, lr=solver.BASE_LR, betas=betas, **how)
    optimizer = torch.optim.SGD(
        groups, lr=solver.BASE_LR, momentum=solver.MOMENTUM, nesterov=solver.NESTEROV, **how
    )
    if how["fused"] and solver.MOMENTUM:
        # torch leaves these as they come from the allocator where the first step of all is one
        # that loss scaling skips, and the second then adds what was in that memory
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def parameter_groups(
    model: nn.Module,
    *,
    base_lr: float,
    weight_decay: float,
    weight_decay_norm: float | None,
    weight_decay_bias: float | None,
    bias_lr_factor: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Trainable parameters grouped by (learning rate, weight decay), in the model's order.

    Norm layers decay by ``weight_decay_norm``; parameters called ``bias`` by
    ``weight_decay_bias`` (None: as everything else), and learn ``bias_lr_factor`` times as fast.
    With a timm network vectors of the whole detector, and what timm names, do not decay where
    those two say nothing; its layers learn by ``layer_decay`` slower, the lower the more.
    """
    scales: dict[str, float] = {}
    spared: set[str] = set()
    for place, module in model.named_modules():
        if isinstance(module, TimmBackbone):
            body = f"{place}.{BODY}"
            spared = {name for name, p in model.named_parameters() if p.ndim <= 1}
            spared |= {f"{body}.{name}" for name in without_decay(module.network)}
            if layer_decay != 1:
                with torch.device("meta"):
                    whole = create_network(module.architecture, classes=1)
                rates = layer_scales(whole, layer_decay)
                scales = {f"{body}.{name}": scale for name, scale in rates.items()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for path, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer, _, name = path.rpartition(".")
        rate = base_lr * scales.get(path, 1.0)
        decay = 0.0 if path in spared else weight_decay
        if isinstance(model.get_submodule(layer), NORM_LAYERS) and weight_decay_norm is not None:
            decay = weight_decay_norm
        if name == "bias":
            rate *= bias_lr_factor
            decay = decay if weight_decay_bias is None else weight_decay_bias
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
