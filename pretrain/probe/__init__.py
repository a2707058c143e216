"""How good features are: nearest neighbours, a linear classifier, or fine-tuning of the whole."""

from pretrain.probe.accuracy import Accuracy
from pretrain.probe.classifier import Saving, Schedule
from pretrain.probe.features import extract, fingerprint, labelled_pair
from pretrain.probe.finetune import finetune_probe
from pretrain.probe.knn import KnnMonitor, concerns, knn_accuracy, knn_probe, weighted_knn
from pretrain.probe.lbfgs import lbfgs_probe
from pretrain.probe.linear import linear_probe
from pretrain.probe.protocols import Measured, measure_knn, measure_lbfgs, measure_sgd
from pretrain.probe.weights import (
    Start,
    array_start,
    load_encoder,
    packed_start,
    random_start,
)

__all__ = [
    "Accuracy",
    "KnnMonitor",
    "Measured",
    "Saving",
    "Schedule",
    "Start",
    "array_start",
    "concerns",
    "extract",
    "finetune_probe",
    "fingerprint",
    "knn_accuracy",
    "knn_probe",
    "labelled_pair",
    "lbfgs_probe",
    "linear_probe",
    "load_encoder",
    "measure_knn",
    "measure_lbfgs",
    "measure_sgd",
    "packed_start",
    "random_start",
    "weighted_knn",
]
