"""Which encoder sees which view, and what is learned from: the methods of pre-training.

`build_method` makes one from the config; `Method` says what the training loop may ask of it.
"""

from pretrain.methods.base import Batch, Method, Metrics, Outcome, feature_std
from pretrain.methods.build import (
    INST_DISC_LOSSES,
    METHODS,
    VIEWS,
    bn_splits_per_process,
    build_method,
    method_name,
)
from pretrain.methods.end_to_end import EndToEnd
from pretrain.methods.inst_disc import InstDiscNCE, InstDiscParametric, InstDiscSoftmax
from pretrain.methods.memory_bank import MemoryBank
from pretrain.methods.moco import MoCo
from pretrain.methods.supervised import Supervised

__all__ = [
    "INST_DISC_LOSSES",
    "METHODS",
    "VIEWS",
    "Batch",
    "EndToEnd",
    "InstDiscNCE",
    "InstDiscParametric",
    "InstDiscSoftmax",
    "MemoryBank",
    "Method",
    "Metrics",
    "MoCo",
    "Outcome",
    "Supervised",
    "bn_splits_per_process",
    "build_method",
    "feature_std",
    "method_name",
]
