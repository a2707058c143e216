"""The keys of a pre-training config, and what cannot go together.

A section's keys stand in the file of what they describe, from which they are imported here: DATA.*
in pretrain/data/sources.py, MOCO.* in pretrain/methods/moco.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moco_det.foundation import declared
from moco_det.foundation.declared import at_least, one_of, section, within
from moco_det.foundation.errors import InputError
from moco_det.foundation.memory import check_workers
from pretrain.augment import AugmentArgs
from pretrain.data.sources import DataArgs
from pretrain.encoders import EncoderArgs
from pretrain.methods.bank import BankArgs
from pretrain.methods.end_to_end import EndToEnd, EndToEndArgs
from pretrain.methods.inst_disc import InstDiscArgs, InstDiscNCE
from pretrain.methods.memory_bank import MemoryBank, MemoryBankArgs
from pretrain.methods.moco import MoCo, MoCoArgs
from pretrain.methods.supervised import Supervised
from pretrain.probe.knn import KnnArgs
from pretrain.schedule import SolverArgs

# How many views each METHOD asks of the data, known before the data is read.
VIEWS = {
    "moco": MoCo.views,
    "end_to_end": EndToEnd.views,
    "memory_bank": MemoryBank.views,
    "inst_disc": InstDiscNCE.views,
    "supervised": Supervised.views,
}


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
        check_workers("DATA.WORKERS", self.DATA.WORKERS)
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
