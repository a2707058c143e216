"""The keys of the pre-training config: defaults, choices, ranges and what can't go together."""

from __future__ import annotations

from typing import Any

from fvcore.common.config import CfgNode

from moco_det.foundation.errors import InputError


def get_cfg() -> CfgNode:
    """The defaults: MoCo v1 on ResNet-50 as the paper trains it, without data."""
    cfg = CfgNode()
    cfg.METHOD = "moco"  # moco | end_to_end | memory_bank | inst_disc | supervised
    cfg.OUTPUT_DIR = "runs/pretrain"
    cfg.SEED = 0
    cfg.DEVICE = "auto"  # auto | cpu | cuda
    cfg.PRECISION = "auto"  # auto | float32 | bfloat16
    # On one GPU in one process the whole step is captured as a CUDA graph, so that launching its
    # kernels costs nothing; elsewhere torch.compile over the encoders.
    cfg.COMPILE = False

    cfg.ENCODER = CfgNode()
    cfg.ENCODER.ARCH = "resnet50"
    cfg.ENCODER.HEAD = "fc"  # fc (MoCo v1, InstDisc) | mlp (MoCo v2)
    cfg.ENCODER.DIM = 128  # of the embedding
    # Groups of a step's batch that batch norm sees apart, over all processes together; 0 is one
    # group a process. The papers' eight GPUs are 8, on however many this runs.
    cfg.ENCODER.BN_SPLITS = 0

    cfg.MOCO = CfgNode()
    cfg.MOCO.K = 65536
    cfg.MOCO.M = 0.999
    cfg.MOCO.T = 0.07
    # Shuffle the keys across the groups of batch norm.
    cfg.MOCO.SHUFFLE = True

    cfg.END_TO_END = CfgNode()
    cfg.END_TO_END.T = 0.07
    cfg.END_TO_END.SHUFFLE = True
    cfg.END_TO_END.SHARED = False  # one encoder for queries and keys instead of two

    # The bank of one embedding an image, of memory_bank and inst_disc.
    cfg.BANK = CfgNode()
    # A row becomes MOMENTUM * row + (1 - MOMENTUM) * embedding, normalised; 0 replaces it.
    cfg.BANK.MOMENTUM = 0.5
    cfg.BANK.DTYPE = "float32"  # float32 | float16
    # Leave rows that still hold the random start out of the loss: the first epoch then only fills
    # the bank. For runs of few epochs; the papers do not.
    cfg.BANK.SKIP_UNSEEN = False

    cfg.MEMORY_BANK = CfgNode()
    cfg.MEMORY_BANK.K = 65536
    cfg.MEMORY_BANK.T = 0.07
    # One draw of K rows serves all queries of a step; False draws K rows for each query.
    cfg.MEMORY_BANK.SHARED_NEGATIVES = True

    cfg.INST_DISC = CfgNode()
    cfg.INST_DISC.LOSS = "nce"  # nce | softmax (non-parametric, over all images) | parametric
    cfg.INST_DISC.K = 4096  # noise samples for each query, the paper's m
    cfg.INST_DISC.T = 0.07
    # The normalising constant; 0 estimates it on the first batch.
    cfg.INST_DISC.Z = 0.0
    # Later batches move it by a share of 1 - Z_MOMENTUM; 1 keeps it constant as the paper does.
    cfg.INST_DISC.Z_MOMENTUM = 1.0
    cfg.INST_DISC.PROXIMAL = 0.0  # lambda of the proximal term
    cfg.INST_DISC.SHARED_NEGATIVES = False

    cfg.DATA = CfgNode()
    # A folder of images, with or without one sub-folder a class; a text file with one image path a
    # line (relative to the file), path<TAB>class where there are labels; voc://DIR?split=train;
    # coco://instances.json?images=DIR; or WebDataset shards, DIR/name-{000000..000099}.tar.
    cfg.DATA.PATH = ""
    # Images are shrunk to this shorter side right after decoding; 0 keeps them as they are.
    cfg.DATA.SHORTER_SIDE = 0
    # Decoded images are kept in memory where the whole set fits in this; 0 never.
    cfg.DATA.CACHE_MB = 512
    # Every image is decoded once to uint8 on the device, each process's own, and the views are
    # made there in batches. They are stored as squares of side SHORTER_SIDE, the longer side
    # squeezed; 0 takes AUGMENT.SIZE / sqrt(AUGMENT.MIN_SCALE), the side at which no crop is
    # smaller than its view. The crops are those without this key; not for shards.
    cfg.DATA.ON_DEVICE = False
    cfg.DATA.WORKERS = 2
    # Share of images that may fail to open before the run stops; STRICT stops at the first one.
    cfg.DATA.MAX_CORRUPT = 0.01
    cfg.DATA.STRICT = False
    # For WebDataset shards: how many images they hold (an epoch is that many), and how many wait
    # in memory, encoded, to be drawn in random order.
    cfg.DATA.IMAGES = 0
    cfg.DATA.SHUFFLE_BUFFER = 4096

    cfg.AUGMENT = CfgNode()
    cfg.AUGMENT.RECIPE = "moco_v1"  # moco_v1 | moco_v2 | moco_v2_no_blur | crop_flip
    cfg.AUGMENT.SIZE = 224
    cfg.AUGMENT.MIN_SCALE = 0.2

    cfg.SOLVER = CfgNode()
    cfg.SOLVER.BATCH = 256  # over all processes
    cfg.SOLVER.ACCUMULATE = 1  # parts of a process's share that are computed one after another
    cfg.SOLVER.LR = 0.03
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.WEIGHT_DECAY = 1e-4
    # The budget: exactly one of the two is above 0.
    cfg.SOLVER.EPOCHS = 0
    cfg.SOLVER.MAX_ITER = 0
    cfg.SOLVER.SCHEDULE = "cosine"  # cosine | step | exponential
    # For step: where the rate is multiplied by GAMMA, in epochs or iterations as the budget is.
    cfg.SOLVER.MILESTONES = []
    cfg.SOLVER.GAMMA = 0.1
    # For exponential: the rate is multiplied by GAMMA each time so many iterations have passed.
    cfg.SOLVER.GAMMA_EVERY = 0
    cfg.SOLVER.LR_UPDATE = "iteration"  # iteration | epoch: how often the rate changes

    # Nearest-neighbour accuracy before the first step, after the last and in between, from the
    # labelled folder TRAIN to TEST; without TEST each image of TRAIN is voted for by the others.
    cfg.KNN = CfgNode()
    cfg.KNN.TRAIN = ""
    cfg.KNN.TEST = ""
    cfg.KNN.EVERY = 0.0  # epochs, a part of one too; 0 is the start and the end alone
    cfg.KNN.K = 0  # neighbours; 0 is 200, and 10 where a class has fewer than 200 images
    cfg.KNN.T = 0.07
    cfg.KNN.FEATURES = "pooled"  # pooled | head: before the head, or the normalised embedding
    cfg.KNN.SIZE = 0  # of the central view; 0 takes AUGMENT.SIZE
    cfg.KNN.GOAL = 0.0  # percent at which the run ends; 0 is none

    cfg.LOG_EVERY = 10
    cfg.CHECKPOINT_EVERY = 500
    cfg.TENSORBOARD = True
    cfg.WANDB = ""  # a Weights & Biases project to log to; empty is none
    return cfg


CHOICES: dict[str, tuple[str, ...]] = {
    "METHOD": ("moco", "end_to_end", "memory_bank", "inst_disc", "supervised"),
    "DEVICE": ("auto", "cpu", "cuda"),
    "PRECISION": ("auto", "float32", "bfloat16"),
    "ENCODER.ARCH": (
        "resnet18",
        "resnet18_w0.5x",
        "resnet18_w0.25x",
        "resnet34",
        "resnet34_w0.5x",
        "resnet34_w0.25x",
        "resnet50",
        "resnet50_w2x",
        "resnet50_w4x",
        "resnet101",
        "resnext50_32x8d",
    ),
    "ENCODER.HEAD": ("fc", "mlp"),
    "BANK.DTYPE": ("float32", "float16"),
    "INST_DISC.LOSS": ("nce", "softmax", "parametric"),
    "AUGMENT.RECIPE": ("moco_v1", "moco_v2", "moco_v2_no_blur", "crop_flip"),
    "SOLVER.SCHEDULE": ("cosine", "step", "exponential"),
    "SOLVER.LR_UPDATE": ("iteration", "epoch"),
    "KNN.FEATURES": ("pooled", "head"),
}

# Lowest and highest allowed value, inclusive.
INF = float("inf")
RANGES: dict[str, tuple[float, float]] = {
    "SEED": (0, 2**63 - 1),
    "ENCODER.DIM": (1, INF),
    "ENCODER.BN_SPLITS": (0, INF),
    "MOCO.K": (1, INF),
    "MOCO.M": (0, 1),
    "MOCO.T": (1e-6, INF),
    "END_TO_END.T": (1e-6, INF),
    "BANK.MOMENTUM": (0, 1),
    "MEMORY_BANK.K": (1, INF),
    "MEMORY_BANK.T": (1e-6, INF),
    "INST_DISC.K": (1, INF),
    "INST_DISC.T": (1e-6, INF),
    "INST_DISC.Z": (0, INF),
    "INST_DISC.Z_MOMENTUM": (0, 1),
    "INST_DISC.PROXIMAL": (0, INF),
    "DATA.SHORTER_SIDE": (0, INF),
    "DATA.CACHE_MB": (0, INF),
    "DATA.WORKERS": (0, INF),
    "DATA.MAX_CORRUPT": (0, 1),
    "DATA.IMAGES": (0, INF),
    "DATA.SHUFFLE_BUFFER": (1, INF),
    "AUGMENT.SIZE": (32, INF),
    "AUGMENT.MIN_SCALE": (1e-3, 1),
    "SOLVER.BATCH": (2, INF),
    "SOLVER.ACCUMULATE": (1, INF),
    "SOLVER.LR": (0, INF),
    "SOLVER.MOMENTUM": (0, 1),
    "SOLVER.WEIGHT_DECAY": (0, INF),
    "SOLVER.EPOCHS": (0, INF),
    "SOLVER.MAX_ITER": (0, INF),
    "SOLVER.GAMMA": (0, 1),
    "SOLVER.GAMMA_EVERY": (0, INF),
    "KNN.EVERY": (0, INF),
    "KNN.K": (0, INF),
    "KNN.T": (1e-6, INF),
    "KNN.SIZE": (0, INF),
    "KNN.GOAL": (0, 100),
    "LOG_EVERY": (1, INF),
    "CHECKPOINT_EVERY": (1, INF),
}


def check(cfg: CfgNode) -> None:
    """Raise InputError for a value out of range or a combination that can't work."""
    for key, choices in CHOICES.items():
        value = lookup(cfg, key)
        if value not in choices:
            raise InputError(f"{key} is {value!r}: choose one of {', '.join(choices)}")
    for key, (low, high) in RANGES.items():
        value = lookup(cfg, key)
        if not low <= value <= high or value == INF:
            limit = f"from {low:g} to {high:g}" if high < INF else f"at least {low:g} and finite"
            raise InputError(f"{key} is {value}: it must be {limit}")
    _check_solver(cfg)
    _check_batches(cfg)
    _check_knn(cfg)
    if cfg.INST_DISC.LOSS == "parametric" and cfg.INST_DISC.PROXIMAL > 0:
        raise InputError(
            f"INST_DISC.PROXIMAL {cfg.INST_DISC.PROXIMAL:g} needs a bank and INST_DISC.LOSS "
            "parametric has none: set it to 0"
        )


def _check_solver(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    if (solver.EPOCHS > 0) == (solver.MAX_ITER > 0):
        raise InputError(
            f"SOLVER.EPOCHS is {solver.EPOCHS} and SOLVER.MAX_ITER is {solver.MAX_ITER}: give the "
            "budget by one of the two and set the other to 0"
        )
    marks = solver.MILESTONES
    if not all(type(mark) is int and mark > 0 for mark in marks) or marks != sorted(set(marks)):
        raise InputError(
            f"SOLVER.MILESTONES is {marks}: it must be whole numbers above 0, each above the one "
            "before, such as [120, 160]"
        )
    if (solver.SCHEDULE == "step") != bool(solver.MILESTONES):
        raise InputError(
            f"SOLVER.SCHEDULE is {solver.SCHEDULE} with SOLVER.MILESTONES {solver.MILESTONES}: "
            "milestones belong to the step schedule, and it needs them"
        )
    if (solver.SCHEDULE == "exponential") != (solver.GAMMA_EVERY > 0):
        raise InputError(
            f"SOLVER.SCHEDULE is {solver.SCHEDULE} with SOLVER.GAMMA_EVERY {solver.GAMMA_EVERY}: "
            "GAMMA_EVERY belongs to the exponential schedule, and it needs it"
        )


def _check_batches(cfg: CfgNode) -> None:
    batch, splits, parts = cfg.SOLVER.BATCH, cfg.ENCODER.BN_SPLITS, cfg.SOLVER.ACCUMULATE
    if batch < 2 * splits:
        raise InputError(
            f"SOLVER.BATCH {batch} in ENCODER.BN_SPLITS {splits} sub-batches leaves batch norm "
            "fewer than 2 images: raise the one or lower the other"
        )
    if parts == 1:
        return
    if cfg.METHOD == "end_to_end":
        raise InputError(
            f"SOLVER.ACCUMULATE {parts} with METHOD end_to_end: its dictionary is the batch, so a "
            "part would have fewer negatives than the whole; use more processes or a smaller "
            "SOLVER.BATCH"
        )
    if splits == 0 or splits % parts:
        raise InputError(
            f"SOLVER.ACCUMULATE {parts} with ENCODER.BN_SPLITS {splits}: batch norm would see "
            "smaller groups than it does without; make BN_SPLITS a multiple of ACCUMULATE, then "
            "the result is the same"
        )


def _check_knn(cfg: CfgNode) -> None:
    knn = cfg.KNN
    if (knn.EVERY > 0 or knn.TEST) and not knn.TRAIN:
        asked = f"KNN.EVERY is {knn.EVERY:g}" if knn.EVERY > 0 else f"KNN.TEST is {knn.TEST}"
        raise InputError(
            f"{asked} and KNN.TRAIN is empty: name a folder with one sub-folder per class there"
        )
    if knn.GOAL > 0 and not knn.EVERY:
        raise InputError(
            f"KNN.GOAL is {knn.GOAL:g} and KNN.EVERY 0 measures at the start and the end alone: "
            "set KNN.EVERY to the epochs between two measurements, such as 5"
        )
    if knn.FEATURES == "head" and cfg.METHOD == "supervised":
        raise InputError("KNN.FEATURES is head and METHOD supervised has no embedding: use pooled")


def lookup(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return node
