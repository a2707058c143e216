"""Which encoder sees which view, and what is learned from: the methods of pre-training.

`Method` says what the training loop may ask of one; pretrain/build.py makes one from the config.
"""

from pretrain.methods.base import Batch, Method, MethodOutput, Metrics, feature_std
from pretrain.methods.end_to_end import EndToEnd
from pretrain.methods.inst_disc import InstDiscNCE, InstDiscParametric, InstDiscSoftmax
from pretrain.methods.memory_bank import MemoryBank
from pretrain.methods.moco import MoCo
from pretrain.methods.supervised import Supervised

# How many views each METHOD asks of the data, known before the data is read.
VIEWS = {
    "moco": MoCo.views,
    "end_to_end": EndToEnd.views,
    "memory_bank": MemoryBank.views,
    "inst_disc": InstDiscNCE.views,
    "supervised": Supervised.views,
}

__all__ = [
    "VIEWS",
    "Batch",
    "EndToEnd",
    "InstDiscNCE",
    "InstDiscParametric",
    "InstDiscSoftmax",
    "MemoryBank",
    "Method",
    "MethodOutput",
    "Metrics",
    "MoCo",
    "Supervised",
    "feature_std",
]
