"""The parts of `moco-det quickstart`: data, two encoders, their conversion, a matrix of runs.

Pre-training and the runs are processes of their own, started by the commands a user would type.
"""

from moco_det.quickstart.data_sets import coco_uris, own_data, painted_data, voc_uris
from moco_det.quickstart.detectors import fine_tune
from moco_det.quickstart.encoders import convert_encoders, pretrain_encoders
from moco_det.quickstart.plan import ARMS, Budget, Plan, remember

__all__ = [
    "ARMS",
    "Budget",
    "Plan",
    "coco_uris",
    "convert_encoders",
    "fine_tune",
    "own_data",
    "painted_data",
    "pretrain_encoders",
    "remember",
    "voc_uris",
]
