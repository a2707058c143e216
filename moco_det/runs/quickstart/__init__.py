"""The parts of `moco-det quickstart`: data, encoders, their conversion, a matrix of runs.

Pre-training and the runs are processes of their own, started by the commands a user would type.
"""

from moco_det.runs.quickstart.data_sets import coco_uris, own_data, painted_data, voc_uris
from moco_det.runs.quickstart.detectors import at_once, fine_tune, jobs_without_encoder
from moco_det.runs.quickstart.encoders import convert_encoders, encoder_jobs, shipped_encoders
from moco_det.runs.quickstart.plan import ARMS, Budget, Plan, remember

__all__ = [
    "ARMS",
    "Budget",
    "Plan",
    "at_once",
    "coco_uris",
    "convert_encoders",
    "encoder_jobs",
    "fine_tune",
    "jobs_without_encoder",
    "own_data",
    "painted_data",
    "remember",
    "shipped_encoders",
    "voc_uris",
]
