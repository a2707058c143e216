"""The matrix of runs: initialisations x settings x seeds, continued where it stopped."""

from moco_det.runs.suites.matrix import Arm, Run, build_matrix, check_architectures, read_arms
from moco_det.runs.suites.runner import Outcome, run_matrix
from moco_det.runs.suites.slurm import write_job_array
from moco_det.runs.suites.state import Cost, State, cost_of, read_state
from moco_det.runs.suites.suite import Setting, Suite, read_suite

__all__ = [
    "Arm",
    "Cost",
    "Outcome",
    "Run",
    "Setting",
    "State",
    "Suite",
    "build_matrix",
    "check_architectures",
    "cost_of",
    "read_arms",
    "read_state",
    "read_suite",
    "run_matrix",
    "write_job_array",
]
