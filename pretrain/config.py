"""The keys of a pre-training config, and what cannot go together.

Those of one method (MOCO.*, END_TO_END.*, BANK.*, MEMORY_BANK.*, INST_DISC.*) stand at the top of
its file in pretrain/methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moco_det.foundation import declared
from moco_det.foundation.declared import at_least, one_of, section, within
from moco_det.foundation.errors import InputError
from pretrain.augment import RECIPES
from pretrain.dictionaries import BankArgs
from pretrain.encoders import ARCHITECTURES, HEADS
from pretrain.methods.end_to_end import EndToEnd, EndToEndArgs
from pretrain.methods.inst_disc import InstDiscArgs, InstDiscNCE
from pretrain.methods.memory_bank import MemoryBank, MemoryBankArgs
from pretrain.methods.moco import MoCo, MoCoArgs
from pretrain.methods.supervised import Supervised

# How many views each METHOD asks of the data, known before the data is read.
VIEWS = {
    "moco": MoCo.views,
    "end_to_end": EndToEnd.views,
    "memory_bank": MemoryBank.views,
    "inst_disc": InstDiscNCE.views,
    "supervised": Supervised.views,
}


@dataclass(frozen=True)
class EncoderArgs:
    """ENCODER.*: the network that is learned."""

    ARCH: str = one_of(ARCHITECTURES, "resnet50")
    HEAD: str = one_of(HEADS, "fc")  # fc (MoCo v1, InstDisc) or mlp (MoCo v2)
    DIM: int = at_least(1, 128)  # of the embedding
    # Groups of a step's batch that batch norm sees apart, over all processes together; 0 is one
    # group per process. The papers' eight GPUs are 8, on however many this runs.
    BN_SPLITS: int = at_least(0, 0)


@dataclass(frozen=True)
class DataArgs:
    """DATA.*: the images, and how they are read."""

    # A folder of images, with or without one sub-folder per class; a text file with one image path
    # per line (relative to the file), path<TAB>class where there are labels;
    # voc://DIR?split=train; coco://instances.json?images=DIR; or WebDataset shards,
    # DIR/name-{000000..000099}.tar.
    PATH: str = ""
    # Images are shrunk to this shorter side right after decoding; 0 keeps them as they are.
    SHORTER_SIDE: int = at_least(0, 0)
    # Decoded images are kept in memory where the whole set fits in this; 0 never.
    CACHE_MB: int = at_least(0, 512)
    # Every image is decoded once to uint8 on the device, each process's own, and the views are
    # made there in batches. They are stored as squares of side SHORTER_SIDE, the longer side
    # squeezed; 0 takes AUGMENT.SIZE / sqrt(AUGMENT.MIN_SCALE), the side at which no crop is
    # smaller than its view. The crops are those without this key; not for shards.
    ON_DEVICE: bool = False
    WORKERS: int = at_least(0, 2)
    # Share of images that may fail to open before the run stops; STRICT stops at the first one.
    MAX_CORRUPT: float = within(0, 1, 0.01)
    STRICT: bool = False
    # For WebDataset shards: how many images they hold (an epoch is that many), and how many wait
    # in memory, encoded, to be drawn in random order.
    IMAGES: int = at_least(0, 0)
    SHUFFLE_BUFFER: int = at_least(1, 4096)


@dataclass(frozen=True)
class AugmentArgs:
    """AUGMENT.*: the views of an image."""

    RECIPE: str = one_of(RECIPES, "moco_v1")
    SIZE: int = at_least(32, 224)  # side of a view
    MIN_SCALE: float = within(1e-3, 1, 0.2)  # smallest share of the image that a crop covers


@dataclass(frozen=True)
class SolverArgs:
    """SOLVER.*: SGD, its schedule, and its budget by exactly one of EPOCHS and MAX_ITER."""

    BATCH: int = at_least(2, 256)  # over all processes
    ACCUMULATE: int = at_least(1, 1)  # parts of a process's share, computed one after another
    LR: float = at_least(0, 0.03)
    MOMENTUM: float = within(0, 1, 0.9)
    WEIGHT_DECAY: float = at_least(0, 1e-4)
    EPOCHS: int = at_least(0, 0)
    MAX_ITER: int = at_least(0, 0)
    SCHEDULE: str = one_of(("cosine", "step", "exponential"), "cosine")
    # For step: where the rate is multiplied by GAMMA, in epochs or iterations as the budget is.
    MILESTONES: list[int] = field(default_factory=list)
    GAMMA: float = within(0, 1, 0.1)
    # For exponential: the rate is multiplied by GAMMA each time so many iterations have passed.
    GAMMA_EVERY: int = at_least(0, 0)
    LR_UPDATE: str = one_of(("iteration", "epoch"), "iteration")  # how often the rate changes

    def __post_init__(self) -> None:
        if (self.EPOCHS > 0) == (self.MAX_ITER > 0):
            raise InputError(
                f"SOLVER.EPOCHS is {self.EPOCHS} and SOLVER.MAX_ITER is {self.MAX_ITER}: give the "
                "budget by one of the two and set the other to 0"
            )
        marks = self.MILESTONES
        if not all(type(mark) is int and mark > 0 for mark in marks) or marks != sorted(set(marks)):
            raise InputError(
                f"SOLVER.MILESTONES is {marks}: it must be whole numbers above 0, each above the "
                "one before, such as [120, 160]"
            )
        for schedule, key, value in (
            ("step", "MILESTONES", marks),
            ("exponential", "GAMMA_EVERY", self.GAMMA_EVERY),
        ):
            if (schedule == self.SCHEDULE) != bool(value):
                raise InputError(
                    f"SOLVER.SCHEDULE is {self.SCHEDULE} with SOLVER.{key} {value}: {key} belongs "
                    f"to the {schedule} schedule, and it needs it"
                )


@dataclass(frozen=True)
class KnnArgs:
    """KNN.*: nearest-neighbour accuracy before the first step, after the last and in between.

    The labelled folder TRAIN votes for TEST; without TEST each image of TRAIN is voted for by the
    others.
    """

    TRAIN: str = ""
    TEST: str = ""
    EVERY: float = at_least(0, 0.0)  # epochs, a part of one too; 0 is the start and the end alone
    K: int = at_least(0, 0)  # neighbours; 0 is 200, and 10 where a class has fewer than 200 images
    T: float = at_least(1e-6, 0.07)
    # pooled or head: before the head, or the normalised embedding
    FEATURES: str = one_of(("pooled", "head"), "pooled")
    SIZE: int = at_least(0, 0)  # of the central view; 0 takes AUGMENT.SIZE
    GOAL: float = within(0, 100, 0.0)  # percent at which the run ends; 0 is none

    def __post_init__(self) -> None:
        if (self.EVERY > 0 or self.TEST) and not self.TRAIN:
            asked = f"KNN.EVERY is {self.EVERY:g}" if self.EVERY else f"KNN.TEST is {self.TEST}"
            raise InputError(
                f"{asked} and KNN.TRAIN is empty: name a folder with one sub-folder per class there"
            )
        if self.GOAL > 0 and not self.EVERY:
            raise InputError(
                f"KNN.GOAL is {self.GOAL:g} and KNN.EVERY 0 measures at the start and the end "
                "alone: set KNN.EVERY to the epochs between two measurements, such as 5"
            )


@dataclass(frozen=True)
class PretrainConfig:
    """All keys; the defaults are MoCo v1 on ResNet-50 as the paper trains it, without data."""

    METHOD: str = one_of(VIEWS, "moco")
    OUTPUT_DIR: str = "runs/pretrain"
    SEED: int = within(0, 2**63 - 1, 0)
    DEVICE: str = one_of(("auto", "cpu", "cuda"), "auto")
    PRECISION: str = one_of(("auto", "float32", "bfloat16"), "auto")
    # On one GPU in one process the whole step is captured as a CUDA graph, so that launching its
    # kernels costs nothing; elsewhere torch.compile over the encoders.
    COMPILE: bool = False
    ENCODER: EncoderArgs = section(EncoderArgs)
    MOCO: MoCoArgs = section(MoCoArgs)
    END_TO_END: EndToEndArgs = section(EndToEndArgs)
    BANK: BankArgs = section(BankArgs)
    MEMORY_BANK: MemoryBankArgs = section(MemoryBankArgs)
    INST_DISC: InstDiscArgs = section(InstDiscArgs)
    DATA: DataArgs = section(DataArgs)
    AUGMENT: AugmentArgs = section(AugmentArgs)
    SOLVER: SolverArgs = section(SolverArgs)
    KNN: KnnArgs = section(KnnArgs)
    LOG_EVERY: int = at_least(1, 10)
    CHECKPOINT_EVERY: int = at_least(1, 500)
    TENSORBOARD: bool = True
    WANDB: str = ""  # a Weights & Biases project to log to; empty is none

    def __post_init__(self) -> None:
        batch, splits, parts = self.SOLVER.BATCH, self.ENCODER.BN_SPLITS, self.SOLVER.ACCUMULATE
        if batch < 2 * splits:
            raise InputError(
                f"SOLVER.BATCH {batch} in ENCODER.BN_SPLITS {splits} sub-batches leaves batch norm "
                "fewer than 2 images: raise the one or lower the other"
            )
        if parts > 1 and self.METHOD == "end_to_end":
            raise InputError(
                f"SOLVER.ACCUMULATE {parts} with METHOD end_to_end: its dictionary is the batch, "
                "so a part would have fewer negatives than the whole; use more processes or a "
                "smaller SOLVER.BATCH"
            )
        if parts > 1 and (splits == 0 or splits % parts):
            raise InputError(
                f"SOLVER.ACCUMULATE {parts} with ENCODER.BN_SPLITS {splits}: batch norm would see "
                "smaller groups than it does without; make BN_SPLITS a multiple of ACCUMULATE, "
                "then the result is the same"
            )
        if self.KNN.FEATURES == "head" and self.METHOD == "supervised":
            raise InputError(
                "KNN.FEATURES is head and METHOD supervised has no embedding: use pooled"
            )

    def plain(self) -> dict[str, Any]:
        """The keys as nested dictionaries."""
        return asdict(self)


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> PretrainConfig:
    """Defaults, then the yaml file, then KEY VALUE pairs; checked and frozen."""
    return declared.load(PretrainConfig, path, overrides)
