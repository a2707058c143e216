"""The doctor on a machine with a GPU."""

from __future__ import annotations

import pytest

from moco_det.doctor import OK, hardware

pytestmark = pytest.mark.gpu


def test_a_gpu_that_works_is_ok_with_nccl_and_its_half_precision(device: str) -> None:
    if device == "cpu":
        pytest.skip("looks at the GPU alone")
    assert {finding.level for finding in hardware.check_gpus()} == {OK}
