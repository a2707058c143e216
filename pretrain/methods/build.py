"""From the config to a method: the one place here that knows the config."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from moco_det.foundation.collectives import world_size
from moco_det.foundation.errors import InputError
from pretrain.config import CfgNode
from pretrain.dictionaries import Bank, Queue
from pretrain.encoders import Encoder
from pretrain.methods.bank import BankMethod
from pretrain.methods.base import Method
from pretrain.methods.end_to_end import EndToEnd
from pretrain.methods.inst_disc import InstDiscNCE, InstDiscParametric, InstDiscSoftmax
from pretrain.methods.memory_bank import MemoryBank
from pretrain.methods.moco import MoCo
from pretrain.methods.supervised import Supervised


class Known(NamedTuple):
    """What the data and the machine say, beside the config."""

    images: int | None  # None for a stream whose images have no numbers
    classes: int | None
    bfloat16: bool


def build_method(
    cfg: CfgNode, *, images: int | None, classes: int | None, bfloat16: bool
) -> Method:
    """The method that `cfg` describes, with fresh weights from torch's global generator.

    `images` is None for a stream whose images have no numbers, `classes` where there are no
    labels; InputError where the method needs them.
    """
    method = METHODS[cfg.METHOD](cfg, Known(images, classes, bfloat16))
    method.accumulate(cfg.SOLVER.ACCUMULATE)
    return method


def method_name(cfg: CfgNode) -> str:
    """The method's name in checkpoints: moco_v1 and moco_v2 are MoCo by head and augmentation."""
    if cfg.METHOD != "moco":
        return str(cfg.METHOD)
    return MOCO_VERSIONS.get((cfg.ENCODER.HEAD, cfg.AUGMENT.RECIPE), "moco")


MOCO_VERSIONS = {("fc", "moco_v1"): "moco_v1", ("mlp", "moco_v2"): "moco_v2"}


def bn_splits_per_process(bn_splits: int, *, processes: int, parts: int = 1) -> int:
    """Sub-batches of batch norm in each process for `bn_splits` groups over all; 0 is one each.

    `parts` is SOLVER.ACCUMULATE, over which the sub-batches of a process are dealt out. Raises
    InputError where the numbers do not divide.
    """
    if bn_splits % processes:
        raise InputError(
            f"ENCODER.BN_SPLITS {bn_splits} over {processes} processes: make it a multiple of the "
            "number of processes, or 0 for one group in each"
        )
    splits = max(1, bn_splits // processes)
    if splits % parts:
        raise InputError(
            f"ENCODER.BN_SPLITS {bn_splits} over {processes} processes is {splits} in each, which "
            f"SOLVER.ACCUMULATE {parts} does not divide: make BN_SPLITS a multiple of "
            f"{processes * parts}"
        )
    return splits


def _moco(cfg: CfgNode, known: Known) -> Method:
    return MoCo(
        encoder=_encoder(cfg),
        dictionary=Queue(cfg.ENCODER.DIM, cfg.MOCO.K),
        momentum=cfg.MOCO.M,
        temperature=cfg.MOCO.T,
        shuffle=cfg.MOCO.SHUFFLE,
        bfloat16=known.bfloat16,
        name=method_name(cfg),
    )


def _end_to_end(cfg: CfgNode, known: Known) -> Method:
    return EndToEnd(
        encoder=_encoder(cfg),
        batch=cfg.SOLVER.BATCH,
        temperature=cfg.END_TO_END.T,
        shuffle=cfg.END_TO_END.SHUFFLE,
        shared=cfg.END_TO_END.SHARED,
        bfloat16=known.bfloat16,
        name=method_name(cfg),
    )


def _memory_bank(cfg: CfgNode, known: Known) -> Method:
    images = _numbered(cfg, known)
    return MemoryBank(
        encoder=_encoder(cfg),
        bank=_bank(cfg, images),
        negatives=cfg.MEMORY_BANK.K,
        temperature=cfg.MEMORY_BANK.T,
        shared_negatives=cfg.MEMORY_BANK.SHARED_NEGATIVES,
        bfloat16=known.bfloat16,
        name=method_name(cfg),
    )


def _inst_disc(cfg: CfgNode, known: Known) -> Method:
    return INST_DISC_LOSSES[cfg.INST_DISC.LOSS](cfg, known)


def _nce(cfg: CfgNode, known: Known) -> Method:
    images = _numbered(cfg, known)
    return InstDiscNCE(
        encoder=_encoder(cfg),
        bank=_bank(cfg, images),
        samples=cfg.INST_DISC.K,
        temperature=cfg.INST_DISC.T,
        z=cfg.INST_DISC.Z,
        z_momentum=cfg.INST_DISC.Z_MOMENTUM,
        shared_negatives=cfg.INST_DISC.SHARED_NEGATIVES,
        proximal_weight=cfg.INST_DISC.PROXIMAL,
        bfloat16=known.bfloat16,
        name=method_name(cfg),
    )


def _softmax(cfg: CfgNode, known: Known) -> Method:
    images = _numbered(cfg, known)
    return InstDiscSoftmax(
        encoder=_encoder(cfg),
        bank=_bank(cfg, images),
        temperature=cfg.INST_DISC.T,
        proximal_weight=cfg.INST_DISC.PROXIMAL,
        bfloat16=known.bfloat16,
        name=method_name(cfg),
    )


def _parametric(cfg: CfgNode, known: Known) -> Method:
    images = _numbered(cfg, known)
    return InstDiscParametric(
        encoder=_encoder(cfg),
        images=images,
        dim=cfg.ENCODER.DIM,
        bfloat16=known.bfloat16,
        name=method_name(cfg),
    )


def _supervised(cfg: CfgNode, known: Known) -> Method:
    if known.classes is None:
        raise InputError(
            f"METHOD supervised needs labels and DATA.PATH {cfg.DATA.PATH} has none: give a folder "
            "with one sub-folder a class, or a list whose lines are path<TAB>class"
        )
    if known.classes < 2:
        raise InputError(f"METHOD supervised needs two classes or more: {cfg.DATA.PATH} has one")
    return Supervised(
        encoder=_encoder(cfg, head="fc", dim=known.classes),
        classes=known.classes,
        bfloat16=known.bfloat16,
        name=method_name(cfg),
    )


def _encoder(cfg: CfgNode, *, head: str | None = None, dim: int | None = None) -> Encoder:
    return Encoder(
        cfg.ENCODER.ARCH,
        head=head or cfg.ENCODER.HEAD,
        dim=dim or cfg.ENCODER.DIM,
        bn_splits=bn_splits_per_process(
            cfg.ENCODER.BN_SPLITS, processes=world_size(), parts=cfg.SOLVER.ACCUMULATE
        ),
    )


def _numbered(cfg: CfgNode, known: Known) -> int:
    """The number of images, for the methods that keep something for each of them."""
    if known.images is None:
        raise InputError(
            f"METHOD {cfg.METHOD} keeps a row for each image and the images of DATA.PATH "
            f"{cfg.DATA.PATH} have no numbers: give a folder or a list of images, or use METHOD "
            "moco or end_to_end"
        )
    if known.images < 2:
        raise InputError(f"METHOD {cfg.METHOD} needs two images or more: {cfg.DATA.PATH} has one")
    return known.images


def _bank(cfg: CfgNode, images: int) -> Bank:
    dim = cfg.ENCODER.DIM
    try:
        return Bank(
            images,
            dim,
            momentum=cfg.BANK.MOMENTUM,
            dtype=BANK_DTYPES[cfg.BANK.DTYPE],
            skip_unseen=cfg.BANK.SKIP_UNSEEN,
        )
    except RuntimeError as error:  # what torch raises where memory does not suffice
        raise InputError(
            f"METHOD {cfg.METHOD}: no memory for a bank of {images} rows of {dim}, made in float32 "
            f"({images * dim * 4 / 2**30:.1f} GiB): lower ENCODER.DIM, or use METHOD moco, whose "
            "queue does not grow with the images"
        ) from error


BANK_DTYPES = {"float32": torch.float32, "float16": torch.float16}

Builder = Callable[[CfgNode, Known], Method]
METHODS: dict[str, Builder] = {
    "moco": _moco,
    "end_to_end": _end_to_end,
    "memory_bank": _memory_bank,
    "inst_disc": _inst_disc,
    "supervised": _supervised,
}
INST_DISC_LOSSES: dict[str, Builder] = {
    "nce": _nce,
    "softmax": _softmax,
    "parametric": _parametric,
}

# How many views a method asks of the data, known before the data is read.
VIEWS: dict[str, int] = {
    "moco": MoCo.views,
    "end_to_end": EndToEnd.views,
    "memory_bank": BankMethod.views,
    "inst_disc": BankMethod.views,
    "supervised": Supervised.views,
}
