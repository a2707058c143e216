"""Which encoder sees which view, and the order of steps.

A method is an nn.Module with an `encoder` (the one that is kept) and
`loss(batch) -> (loss, metrics)`; `after_step()` is called once the optimizer has stepped.

Letters: N images, C feature dimensions, K negatives, m momentum, T temperature.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import CfgNode
from pretrain.dictionaries import Queue
from pretrain.encoders import Encoder
from pretrain.errors import InputError
from pretrain.losses import first_is_positive, info_nce_logits

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """One step's images on the device: views [N, 3, H, W] normalised, labels [N] or None."""

    views: tuple[Tensor, ...]
    indices: Tensor
    labels: Tensor | None = None


class Method(nn.Module):
    """What the training loop asks of a method."""

    name: str
    views: int
    encoder: Encoder

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        """The loss of one step, with its graph, and detached scalars to watch."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What follows the optimizer's step."""

    @property
    def chance_loss(self) -> float:
        """The loss of an encoder that knows nothing."""
        raise NotImplementedError

    def encoder_state(self) -> OrderedDict[str, Tensor]:
        """The kept trunk in torchvision's names, without `fc`: contiguous tensors on the CPU."""
        return OrderedDict(
            (name, value.detach().cpu().contiguous())
            for name, value in self.encoder.trunk.state_dict().items()
        )


class MoCo(Method):
    """Momentum contrast (MoCo paper, Algorithm 1); v1 or v2 by the head and the augmentation."""

    views = 2

    def __init__(
        self,
        *,
        encoder: Encoder,
        dictionary: Queue,
        momentum: float,
        temperature: float,
        shuffle: bool = True,
        bfloat16: bool = False,
        name: str = "moco",
    ) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder  # f_q
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)  # f_k
        self.dictionary = dictionary
        self.momentum = momentum
        self.temperature = temperature
        self.shuffle = shuffle
        self.use_bfloat16 = bfloat16
        self._pending: tuple[Tensor, Tensor] | None = None

    @property
    def chance_loss(self) -> float:
        return math.log(self.dictionary.size + 1)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        view_q, view_k = batch.views
        q = F.normalize(self.encoder(view_q, bfloat16=self.use_bfloat16), dim=1)  # N x C
        with torch.no_grad():
            self.update_key_encoder()
            k = self.encode_keys(view_k)  # N x C
        negatives = self.dictionary.read(batch.indices)
        logits = info_nce_logits(q, k, negatives, self.temperature)  # N x (1+K)
        # The queue is the tensor that backward will read, so the keys wait for `after_step`
        # instead of a copy of the whole queue being made every step.
        self._pending = (k, batch.indices)
        return first_is_positive(logits), self._metrics(q.detach(), logits.detach())

    def after_step(self) -> None:
        """Enqueue the step's keys."""
        if self._pending is not None:
            self.dictionary.write(*self._pending)
            self._pending = None

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """f_k <- m f_k + (1-m) f_q; batch norm statistics are each encoder's own."""
        keys = [p.detach() for p in self.key_encoder.parameters()]
        queries = [p.detach() for p in self.encoder.parameters()]
        torch._foreach_lerp_(keys, queries, 1.0 - self.momentum)

    @torch.no_grad()
    def encode_keys(self, view: Tensor) -> Tensor:
        """Normalised keys [N, C] in the order of `view`.

        With shuffling, the batch is permuted before the sub-batches of batch norm are formed and
        its keys are put back after, so that a key's statistics come from other images than its
        query's (MoCo paper, Section 3.3, shuffling BN). Without sub-batches a permutation changes
        no statistics.
        """
        if not self.shuffle:
            return F.normalize(self.key_encoder(view, bfloat16=self.use_bfloat16), dim=1)
        order = torch.randperm(len(view)).to(view.device)
        shuffled = view[order].contiguous(memory_format=_memory_format(view))
        keys = F.normalize(self.key_encoder(shuffled, bfloat16=self.use_bfloat16), dim=1)
        return keys[order.argsort()]

    def _metrics(self, q: Tensor, logits: Tensor) -> Metrics:
        return {
            "accuracy": 100.0 * (logits[:, 1:].amax(dim=1) < logits[:, 0]).float().mean(),
            "positive_similarity": logits[:, 0].mean() * self.temperature,
            "negative_similarity": logits[:, 1:].mean() * self.temperature,
            "feature_std": feature_std(q),
        }


class Supervised(Method):
    """Cross-entropy over the labels: the arm that contrastive pre-training is compared with."""

    views = 1

    def __init__(
        self, *, encoder: Encoder, classes: int, bfloat16: bool = False, name: str = "supervised"
    ) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.classes = classes
        self.use_bfloat16 = bfloat16

    @property
    def chance_loss(self) -> float:
        return math.log(self.classes)

    def loss(self, batch: Batch) -> tuple[Tensor, Metrics]:
        assert batch.labels is not None
        features = self.encoder.features(batch.views[0], bfloat16=self.use_bfloat16)
        scores = self.encoder.head(features)  # N x classes
        with torch.no_grad():
            metrics = {
                "accuracy": 100.0 * (scores.argmax(dim=1) == batch.labels).float().mean(),
                "feature_std": feature_std(F.normalize(features, dim=1)),
            }
        return F.cross_entropy(scores, batch.labels), metrics


def feature_std(features: Tensor) -> Tensor:
    """Mean over dimensions of the batch's std, times sqrt(C): 1 when spread out, 0 collapsed.

    `features` [N, C] are L2-normalised; unit vectors in random directions have std 1/sqrt(C).
    """
    return features.std(dim=0, correction=0).mean() * math.sqrt(features.shape[1])


def _memory_format(images: Tensor) -> torch.memory_format:
    channels_last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def method_name(cfg: CfgNode) -> str:
    """The method's name in checkpoints: moco_v1 and moco_v2 are MoCo by head and augmentation."""
    if cfg.METHOD != "moco":
        return str(cfg.METHOD)
    return MOCO_VERSIONS.get((cfg.ENCODER.HEAD, cfg.AUGMENT.RECIPE), "moco")


MOCO_VERSIONS = {("fc", "moco_v1"): "moco_v1", ("mlp", "moco_v2"): "moco_v2"}


def _build_moco(cfg: CfgNode, classes: int | None, bfloat16: bool) -> Method:
    encoder = Encoder(
        cfg.ENCODER.ARCH,
        head=cfg.ENCODER.HEAD,
        dim=cfg.ENCODER.DIM,
        bn_splits=max(1, cfg.ENCODER.BN_SPLITS),
    )
    return MoCo(
        encoder=encoder,
        dictionary=Queue(cfg.ENCODER.DIM, cfg.MOCO.K),
        momentum=cfg.MOCO.M,
        temperature=cfg.MOCO.T,
        shuffle=cfg.MOCO.SHUFFLE,
        bfloat16=bfloat16,
        name=method_name(cfg),
    )


def _build_supervised(cfg: CfgNode, classes: int | None, bfloat16: bool) -> Method:
    if classes is None:
        raise InputError(
            f"METHOD supervised needs labels and DATA.PATH {cfg.DATA.PATH} has none: give a folder "
            "with one sub-folder a class, or a list whose lines are path<TAB>class"
        )
    if classes < 2:
        raise InputError(f"METHOD supervised needs two classes or more: {cfg.DATA.PATH} has one")
    encoder = Encoder(
        cfg.ENCODER.ARCH, head="fc", dim=classes, bn_splits=max(1, cfg.ENCODER.BN_SPLITS)
    )
    return Supervised(encoder=encoder, classes=classes, bfloat16=bfloat16, name=method_name(cfg))


METHODS: dict[str, Callable[[CfgNode, int | None, bool], Method]] = {
    "moco": _build_moco,
    "supervised": _build_supervised,
}

# How many views a method asks of the data, known before the data is read.
VIEWS = {"moco": MoCo.views, "supervised": Supervised.views}


def build_method(cfg: CfgNode, *, classes: int | None, bfloat16: bool) -> Method:
    """The method that `cfg` describes, with fresh weights from torch's global generator."""
    return METHODS[cfg.METHOD](cfg, classes, bfloat16)
