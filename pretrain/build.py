"""From the config to the parts of a run: what the config describes is made here alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from moco_det.foundation import collectives
from moco_det.foundation.errors import InputError
from moco_det.foundation.memory import check_fits, on_meta
from pretrain import augment, data
from pretrain.config import VIEWS, PretrainConfig
from pretrain.encoders import Encoder
from pretrain.loop import Loop
from pretrain.methods.bank import Bank
from pretrain.methods.base import Method
from pretrain.methods.end_to_end import EndToEnd
from pretrain.methods.inst_disc import InstDiscNCE, InstDiscParametric, InstDiscSoftmax
from pretrain.methods.memory_bank import MemoryBank
from pretrain.methods.moco import MoCo
from pretrain.methods.supervised import Supervised
from pretrain.probe.knn import KnnMonitor
from pretrain.watch import Watch

MOCO_VERSIONS = {("fc", "moco_v1"): "moco_v1", ("mlp", "moco_v2"): "moco_v2"}


def build_loop(
    cfg: PretrainConfig, device: torch.device, *, bfloat16: bool, begun_by: int = 0
) -> Loop:
    """Data, method, optimizer and neighbours of a run, on their device.

    `begun_by` is how many processes it began with, 0 for those there are now.
    """
    torch.manual_seed(cfg.SEED)
    source = open_source(cfg, device)
    bn_splits_per_process(cfg, collectives.world_size())
    knn = None
    if cfg.KNN.TRAIN and collectives.is_main():
        size = cfg.KNN.SIZE or cfg.AUGMENT.SIZE
        knn = KnnMonitor(cfg.KNN, size=size, bfloat16=bfloat16)
    images = source.images if source.numbered else None
    begun_by = begun_by or collectives.world_size()
    check_memory(cfg, device, images=images, classes=source.classes, begun_by=begun_by)
    method = build_method(
        cfg, images=images, classes=source.classes, bfloat16=bfloat16, begun_by=begun_by
    )
    optimizer = place(method, cfg, device)
    captured = cfg.COMPILE and device.type == "cuda" and collectives.world_size() == 1
    if cfg.COMPILE and not captured:
        for child in method.children():
            if isinstance(child, Encoder):
                child.trunk.compile()
    ways_out = ["more steps first (SOLVER.MAX_ITER or SOLVER.EPOCHS)"]
    ways_out += method.ways_out(batch=cfg.SOLVER.BATCH)
    # While a queue still holds its random start, the loss is low for the wrong reason.
    filled = 2 * (method.dictionary_size or 0) // cfg.SOLVER.BATCH
    watch = Watch(method.chance_loss, after=max(100, filled), ways_out="; then ".join(ways_out))
    loop = Loop(cfg, method, source, optimizer, watch, knn, device, begun_by)
    if captured:
        loop.capture()
    return loop


def open_source(cfg: PretrainConfig, device: torch.device) -> data.Source:
    """The images of DATA.PATH and their views."""
    spec = data.ViewSpec(
        augment.recipe(cfg.AUGMENT.RECIPE, min_scale=cfg.AUGMENT.MIN_SCALE),
        size=cfg.AUGMENT.SIZE,
        views=VIEWS[cfg.METHOD],
        seed=cfg.SEED,
        shorter_side=cfg.DATA.SHORTER_SIDE,
    )
    return data.open_data(cfg.DATA, spec, batch=cfg.SOLVER.BATCH, device=device)


def check_images(cfg: PretrainConfig) -> None:
    """InputError for images that a run would refuse before its first step; none is decoded."""
    listed = replace(cfg, DATA=replace(cfg.DATA, ON_DEVICE=False, CACHE_MB=0))
    source = open_source(listed, torch.device("cpu"))
    images = source.images if source.numbered else None
    build = partial(build_method, cfg, images=images, classes=source.classes, bfloat16=False)
    on_meta(build, f"METHOD {cfg.METHOD}")
    if cfg.KNN.TRAIN:
        KnnMonitor(cfg.KNN, size=cfg.KNN.SIZE or cfg.AUGMENT.SIZE)


def check_memory(
    cfg: PretrainConfig,
    device: torch.device,
    *,
    images: int | None,
    classes: int | None,
    begun_by: int = 0,
) -> None:
    """InputError where the state and the batch of a run are more than its device has."""
    sizes = {
        "moco": "MOCO.K and ENCODER.DIM",
        "supervised": "the number of classes",
    }.get(cfg.METHOD, "the number of images and ENCODER.DIM")
    build = partial(
        build_method, cfg, images=images, classes=classes, bfloat16=False, begun_by=begun_by
    )
    method = on_meta(build, f"{sizes} (METHOD {cfg.METHOD})")
    trunk = sum(p.nbytes for p in method.encoder.trunk.parameters())
    trained = sum(p.nbytes for p in method.parameters() if p.requires_grad)
    state = sum(t.nbytes for t in (*method.parameters(), *method.buffers()))
    share = data.share_of(cfg.SOLVER.BATCH, collectives.world_size())
    pixels = share * cfg.AUGMENT.SIZE**2 * 3 * method.views
    needs = {
        f"ENCODER.ARCH {cfg.ENCODER.ARCH}": 3 * trunk,
        f"{sizes} (METHOD {cfg.METHOD})": max(0, state + 2 * trained - 3 * trunk),
        f"SOLVER.BATCH {cfg.SOLVER.BATCH} of AUGMENT.SIZE {cfg.AUGMENT.SIZE}": 5 * pixels,
    }
    check_fits(needs, str(device))


def place(method: Method, cfg: PretrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """Make a method ready to be trained on a device, by the optimizer that is returned."""
    method.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    method.train()
    return torch.optim.SGD(
        [p for p in method.parameters() if p.requires_grad],
        lr=cfg.SOLVER.LR,
        momentum=cfg.SOLVER.MOMENTUM,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        fused=True,
    )


def build_method(
    cfg: PretrainConfig,
    *,
    images: int | None,
    classes: int | None,
    bfloat16: bool,
    begun_by: int = 0,
) -> Method:
    """The method that `cfg` describes, with fresh weights from torch's global generator.

    `images` is None for a stream whose images have no numbers, `classes` where there are no
    labels; InputError where the method needs them. `begun_by` as in `bn_splits_per_process`.
    """
    kind = cfg.INST_DISC.LOSS if cfg.METHOD == "inst_disc" else cfg.METHOD
    head, dim = cfg.ENCODER.HEAD, cfg.ENCODER.DIM
    if kind == "supervised":
        if classes is None or classes < 2:
            raise InputError(
                f"METHOD supervised needs labels of two classes or more, and DATA.PATH "
                f"{cfg.DATA.PATH} has {classes or 'none'}: give a folder with one sub-folder per "
                "class, or a list whose lines are path<TAB>class"
            )
        head, dim = "fc", classes
    if images is None and cfg.METHOD in ("memory_bank", "inst_disc"):
        raise InputError(
            f"METHOD {cfg.METHOD} keeps a row for each image and the images of DATA.PATH "
            f"{cfg.DATA.PATH} have no numbers: give a folder or a list of images, or use METHOD "
            "moco or end_to_end"
        )
    rows = images or 0
    splits = bn_splits_per_process(cfg, collectives.world_size(), begun_by)
    encoder = Encoder(cfg.ENCODER.ARCH, head=head, dim=dim, bn_splits=splits)

    methods: dict[str, Callable[[], Method]] = {
        "moco": lambda: MoCo(encoder, cfg.MOCO),
        "end_to_end": lambda: EndToEnd(encoder, cfg.END_TO_END, batch=cfg.SOLVER.BATCH),
        "memory_bank": lambda: MemoryBank(encoder, Bank(rows, dim, cfg.BANK), cfg.MEMORY_BANK),
        "nce": lambda: InstDiscNCE(encoder, Bank(rows, dim, cfg.BANK), cfg.INST_DISC),
        "softmax": lambda: InstDiscSoftmax(encoder, Bank(rows, dim, cfg.BANK), cfg.INST_DISC),
        "parametric": lambda: InstDiscParametric(encoder, images=rows),
        "supervised": lambda: Supervised(encoder),
    }
    method = methods[kind]()
    method.name, method.use_bfloat16 = method_name(cfg), bfloat16
    method.accumulate(cfg.SOLVER.ACCUMULATE)
    return method


def method_name(cfg: PretrainConfig) -> str:
    """The method's name in checkpoints: moco_v1 and moco_v2 are MoCo by head and augmentation."""
    if cfg.METHOD != "moco":
        return cfg.METHOD
    return MOCO_VERSIONS.get((cfg.ENCODER.HEAD, cfg.AUGMENT.RECIPE), "moco")


def bn_splits_per_process(cfg: PretrainConfig, processes: int, begun_by: int = 0) -> int:
    """Sub-batches of batch norm in each process for ENCODER.BN_SPLITS over all; 0 is one each.

    With 0, a run that was `begun_by` a multiple of these processes keeps the groups it had. The
    sub-batches of a process are dealt out over its SOLVER.ACCUMULATE parts. Raises InputError where
    the numbers do not divide.
    """
    splits, parts = cfg.ENCODER.BN_SPLITS, cfg.SOLVER.ACCUMULATE
    if not splits and begun_by % processes == 0:
        splits = begun_by
    share = data.share_of(cfg.SOLVER.BATCH, processes)
    if splits % (processes * parts):
        raise InputError(
            f"ENCODER.BN_SPLITS {splits} over {processes} processes and SOLVER.ACCUMULATE {parts}: "
            f"make it a multiple of {processes * parts}, or 0 for one group per process"
        )
    each = max(1, splits // processes)
    if parts > 1 and share % each:
        raise InputError(
            f"SOLVER.ACCUMULATE {parts}: the {share} images of a process do not divide into its "
            f"{each} sub-batches of batch norm, so the parts would have other ones; choose "
            "SOLVER.BATCH as a multiple of ENCODER.BN_SPLITS"
        )
    return each
