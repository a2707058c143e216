"""A network of timm below a pyramid: its stages, under timm's own parameter names.

timm (an extra, `pip install moco-det[timm]`) builds the network, without its classifier; nothing of
timm is imported before one is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from moco_det.foundation.errors import InputError, one_line
from moco_det.foundation.strict_yaml import did_you_mean
from moco_det.timm_backbones import PLAIN_STAGES
from moco_det.timm_backbones.training import batch_norms, freeze
from moco_det.timm_backbones.windows import Windows, quarter_ends

# Where a detector keeps the network: `backbone.bottom_up.body.` and then timm's names.
BODY = "body"
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
PATCH = 16  # of a plain ViT, all of whose features have this stride
# Families whose networks take images of any size only when they are told so.
SWINS = ("swin_", "swinv2_")
PLAIN_VITS = ("vit_", "deit_", "deit3_", "eva_", "eva02_", "flexivit_", "test_vit")
# A size that no network is made for: 3 and 5 cells at stride 32.
ODD_SIZE = (96, 160)
OTHERS = (
    "take a model of four stages, like convnext_tiny or regnety_016, or a plain ViT of patches of "
    "16 pixels, like vit_small_patch16_224"
)


class TimmBackbone(nn.Module):
    """Features "res2" .. "res5" at strides 4, 8, 16 and 32, each the last of its stride.

    Those of a plain ViT, all of stride 16, are after each quarter of its blocks, the last of them
    through its norm: "quarter1", "quarter2", "quarter3" and "last".
    Its parameters are `body.` and timm's names. `norm` is "" for what timm has, "SyncBN" or
    "FrozenBN" for its batch norms. `window` is the side, in patches, of the windows of a plain
    ViT's attention, 0 for none. `freeze_at` counts as in detectron2: 1 freezes what lies before
    the stage of stride 4 or a ViT's blocks, 2 that stage or the first quarter too, 5 all. What is
    frozen gets no gradient and stays in evaluation mode: batch norms keep their statistics, and
    drop path is off.
    InputError for a name that timm does not have, for a network without these strides or for
    images of one size alone, and for a norm, a drop path or windows that the network does not have.
    """

    def __init__(
        self,
        name: str,
        *,
        drop_path: float = 0.0,
        norm: str = "",
        window: int = 0,
        freeze_at: int = 0,
    ) -> None:
        super().__init__()
        self.architecture = name.partition(".")[0]  # behind the dot is whose weights are meant
        network = create_network(name, drop_path=drop_path)
        infos = list(network.feature_info)
        places = stages_of(network, infos)
        if not places:
            has = ", ".join(map(str, sorted({info["reduction"] for info in infos})))
            raise InputError(
                f"MODEL.TIMM.NAME {name} gives no features at strides 4, 8, 16 and 32 (it has "
                f"{has}), which a pyramid needs: {OTHERS}"
            )
        self.plain = tuple(places) == PLAIN_STAGES
        self.indices = list(places.values())
        self.channels = {stage: int(infos[n]["num_chs"]) for stage, n in places.items()}
        self.strides = {stage: int(infos[n]["reduction"]) for stage, n in places.items()}
        # what lies behind the last stage would never get a gradient
        network.prune_intermediate_layers(self.indices, prune_norm=not self.plain, prune_head=True)
        self.norm = (norm or "BN") if batch_norms(network) else ""
        if norm and not self.norm:
            raise InputError(f"MODEL.TIMM.NORM {norm}: {name} has no batch norm; leave NORM ''")
        if norm == "SyncBN":
            network = import_timm().layers.convert_sync_batchnorm(network)
        self.add_module(BODY, network)
        network.eval()
        self.windows: Windows | None = None
        if window:
            if not self.plain:
                raise InputError(f"MODEL.TIMM.WINDOW {window}: {name} is no plain ViT: set 0")
            self.windows = Windows(network, window)
        self.check_sizes(name)
        self.constant: list[nn.Module] = []
        if freeze_at:
            lowest = min(self.strides.values())
            stages = [info["module"] for info in infos if info["reduction"] == lowest]
            first = dict(network.named_modules()).get(stages[0])
            if first is None:
                raise InputError(f"timm names no stages of {name}: set MODEL.BACKBONE.FREEZE_AT 0")
            self.constant = freeze(self, torch.zeros(1, 3, *ODD_SIZE), first, freeze_at)
        if norm == "FrozenBN":
            self.constant += batch_norms(network)
            for layer in batch_norms(network):
                layer.requires_grad_(False)
        self.train()

    @property
    def network(self) -> nn.Module:
        """timm's network."""
        return self.get_submodule(BODY)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), sides divisible by 32, to (N, channels, H / stride, W / stride) by name."""
        if self.windows is not None:
            self.windows.grid = x.shape[-2] // PATCH, x.shape[-1] // PATCH
        stages = features_of(self.network, x, self.indices, plain=self.plain)
        return dict(zip(self.strides, stages, strict=True))

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        for module in self.constant:
            module.training = False
        return self

    @torch.no_grad()
    def check_sizes(self, name: str) -> None:
        """InputError where the network takes images of one size alone."""
        height, width = ODD_SIZE
        wanted = {
            stage: (1, channels, height // self.strides[stage], width // self.strides[stage])
            for stage, channels in self.channels.items()
        }
        try:
            stages = self(torch.zeros(1, 3, height, width))
            found: Any = {stage: tuple(feature.shape) for stage, feature in stages.items()}
        except Exception as error:  # networks refuse a size in half a dozen types
            found = one_line(error) or type(error).__name__
        if found != wanted:
            raise InputError(
                f"MODEL.TIMM.NAME {name} does not take images of any size ({width} x {height}: "
                f"{found}): {OTHERS}"
            )


def stages_of(network: Any, infos: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Which of timm's features are the stages; none of a network that no pyramid stands on."""
    if not hasattr(network, "forward_intermediates"):
        return {}
    last = {info["reduction"]: n for n, info in enumerate(infos)}  # of each stride
    if set(STRIDES.values()) <= last.keys():
        return {stage: last[stride] for stage, stride in STRIDES.items()}
    if set(last) == {PATCH} and len(infos) >= 4 and is_plain_vit(network):
        return dict(zip(PLAIN_STAGES, quarter_ends(len(infos)), strict=True))
    return {}


def is_plain_vit(network: nn.Module) -> bool:
    """Whether it is one of timm's two classes of plain ViTs, the second with rotary positions."""
    from timm.models import Eva, VisionTransformer

    return isinstance(network, VisionTransformer | Eva)


def features_of(network: Any, x: Tensor, indices: Sequence[int], *, plain: bool) -> list[Tensor]:
    """Those of timm's own `forward_intermediates`; a plain ViT's last one through its norm."""
    if not plain:
        return list(network.forward_intermediates(x, indices=indices, intermediates_only=True))
    tokens, features = network.forward_intermediates(x, indices=indices)
    cells = tokens[:, network.num_prefix_tokens :].transpose(1, 2)
    return [*features[:-1], cells.reshape(features[-1].shape)]


def import_timm() -> ModuleType:
    """timm, or an InputError with the way to it."""
    try:
        import timm
    except ImportError:
        raise InputError("a backbone of timm needs timm: pip install 'moco-det[timm]'") from None
    return timm


def any_size(name: str) -> dict[str, Any]:
    """What `timm.create_model` is told, so that the network takes images of any size."""
    if name.startswith(SWINS):
        return {"strict_img_size": False, "dynamic_img_size": True}
    return {"dynamic_img_size": True} if name.startswith(PLAIN_VITS) else {}


def create_network(name: str, *, drop_path: float = 0.0, classes: int = 0) -> Any:
    """timm's network for images of any size, randomly initialised; of 0 classes without a head."""
    timm = import_timm()
    base = name.partition(".")[0]  # behind the dot is whose weights are meant
    if base not in timm.list_models():
        hint = did_you_mean(base, timm.list_models(), most=3)
        raise InputError(f"MODEL.TIMM.NAME {name!r} is no model of timm {timm.__version__}{hint}")
    more = any_size(base)
    if drop_path:
        more = {**more, "drop_path_rate": drop_path}
    try:
        network = timm.create_model(name, pretrained=False, num_classes=classes, **more)
    except (RuntimeError, TypeError) as error:
        if drop_path and "drop_path_rate" in str(error):
            reason = "has no drop path: set MODEL.TIMM.DROP_PATH 0"
        elif "img_size" in str(error):
            reason = f"takes images of one size alone: {OTHERS}"
        elif "pretrained tag" in str(error):
            reason = f"names no weights of timm {timm.__version__}: take {base} alone"
        else:
            raise
        raise InputError(f"MODEL.TIMM.NAME {name} {reason}") from None
    return network
