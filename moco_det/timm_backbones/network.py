"""A network of timm below a feature pyramid: its four stages, under timm's own parameter names.

timm (an extra, `pip install moco-det[timm]`) builds the network, without its classifier; nothing of
timm is imported before one is asked for.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor, nn

from moco_det.foundation.errors import InputError
from moco_det.foundation.strict_yaml import did_you_mean

# Where a detector keeps the network: `backbone.bottom_up.body.` and then timm's names.
BODY = "body"
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
# Families whose networks take images of any size only when they are told so.
ANY_SIZE: dict[str, dict[str, Any]] = {
    "swin_": {"strict_img_size": False, "dynamic_img_size": True},
    "swinv2_": {"strict_img_size": False, "dynamic_img_size": True},
}


class TimmBackbone(nn.Module):
    """Features "res2" .. "res5" at strides 4, 8, 16 and 32, each the last of its stride.

    Its parameters are `body.` and timm's names. InputError for a name that timm does not have, and
    for a network without these four strides.
    """

    def __init__(self, name: str, *, drop_path: float = 0.0) -> None:
        super().__init__()
        network = create_network(name, drop_path=drop_path)
        infos = list(network.feature_info)
        indices = {info["reduction"]: n for n, info in enumerate(infos)}  # the last of each
        lacking = [stride for stride in STRIDES.values() if stride not in indices]
        if lacking or not hasattr(network, "forward_intermediates"):
            has = ", ".join(map(str, sorted(indices)))
            raise InputError(
                f"MODEL.TIMM.NAME {name} has features at strides {has}, and a pyramid needs 4, 8, "
                "16 and 32: take a model of stages, like convnext_tiny or regnety_016"
            )
        self.indices = [indices[stride] for stride in STRIDES.values()]
        self.channels = {
            stage: int(infos[indices[stride]]["num_chs"]) for stage, stride in STRIDES.items()
        }
        self.strides = dict(STRIDES)
        # what lies behind the last stage would never get a gradient
        network.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)
        self.add_module(BODY, network)

    @property
    def network(self) -> nn.Module:
        """timm's network."""
        return self.get_submodule(BODY)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), sides divisible by 32, to (N, channels, H / stride, W / stride) by name."""
        stages = self.network.forward_intermediates(  # type: ignore[operator]
            x, indices=self.indices, intermediates_only=True
        )
        return dict(zip(STRIDES, stages, strict=True))


def import_timm() -> ModuleType:
    """timm, or an InputError with the way to it."""
    try:
        import timm
    except ImportError:
        raise InputError("a backbone of timm needs timm: pip install 'moco-det[timm]'") from None
    return timm


def create_network(name: str, *, drop_path: float = 0.0) -> Any:
    """timm's whole network for images of any size, randomly initialised, without a classifier."""
    timm = import_timm()
    base = name.partition(".")[0]  # behind the dot is whose weights are meant
    if base not in timm.list_models():
        hint = did_you_mean(base, timm.list_models(), most=3)
        raise InputError(f"MODEL.TIMM.NAME {name!r} is no model of timm {timm.__version__}{hint}")
    more = next((keys for start, keys in ANY_SIZE.items() if base.startswith(start)), {})
    return timm.create_model(
        name, pretrained=False, num_classes=0, global_pool="", drop_path_rate=drop_path, **more
    )
