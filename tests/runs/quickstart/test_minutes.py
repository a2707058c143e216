import json
from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.runs.quickstart.minutes import LEAST, steps_within
from moco_det.runs.quickstart.options import check_together, choose_budget
from moco_det_tools.quickstart import parser

TEN: dict[str, Any] = {"encoders": 1, "runs": 6, "at_once": 2, "device": "cpu"}


def test_time_cores_and_gpus_give_steps_and_more_runs_take_them() -> None:
    pretrain, finetune = steps_within(10, **TEN)
    assert steps_within(20, **TEN) == (2 * pretrain, pytest.approx(2 * finetune, rel=0.05))
    assert steps_within(10, **{**TEN, "at_once": 6})[1] > 2 * finetune
    assert steps_within(10, **{**TEN, "runs": 12})[1] == pytest.approx(finetune / 2, rel=0.05)
    assert steps_within(10, **{**TEN, "at_once": 3, "device": "cuda"}) > (5 * pretrain, 0)
    assert steps_within(10, **{**TEN, "encoders": 0})[1] > finetune, "no time for pre-training"
    assert steps_within(1, **TEN) == LEAST


def test_a_folder_keeps_the_steps_of_its_minutes_when_seeds_come_to_it(tmp_path: Path) -> None:
    def steps(*options: str) -> tuple[int, int]:
        args = parser().parse_args(["--data", "x", *options])
        budget = choose_budget(args, {}, tmp_path, device="cpu")
        return budget.pretrain_steps, budget.finetune_steps

    first = steps("--minutes", "20")
    note = {"minutes": 20, "pretrain_steps": first[0], "finetune_steps": first[1]}
    (tmp_path / "quickstart.json").write_text(json.dumps(note))
    assert steps("--minutes", "20", "--seeds", "5") == first
    assert steps("--minutes", "40", "--seeds", "5") != first
    assert steps("--minutes", "20", "--finetune-steps", "7") == (first[0], 7)


def test_minutes_are_for_data_of_ones_own() -> None:
    with pytest.raises(InputError, match="--minutes is for your own data"):
        check_together(parser().parse_args(["--minutes", "5"]))
