"""The studies that ship: each is read, named with its cost and command, and needs what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moco_det.runs.studies import flow
from moco_det.runs.studies.data_sets import read_data
from moco_det.runs.studies.pieces import build_pieces
from moco_det.runs.studies.study import read_study
from moco_det.settings.zoo import find_study, names
from pretrain.config import load_config
from pretrain.probe.options import PROTOCOLS
from tests.runs.studies.conftest import read_probe

STUDIES = [name for name in names(["studies/**/*.yaml"]) if not name.endswith("/base")]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_that_ships_is_one_and_all_its_pieces_can_be_made(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = find_study(name.removeprefix("studies/"))
    header = file.read_text("utf-8").splitlines()[:4]
    words = (
        "# ",
        "# Published: ",
        "# Cost: ",
        f"# Command: moco-det study {name.removeprefix('studies/')}",
    )
    assert all(line.startswith(word) for line, word in zip(header, words, strict=True))
    plan = read_study(file)
    assert plan.source and plan.seeds >= 2
    users = [f"{name}={tmp_path}" for name, recipe in plan.data.items() if not recipe]
    data = read_data([plan], users, Path("out"))
    matrix = build_pieces([plan], Path("out"), data, seeds=[0], engine="standalone", device="cpu")
    flow.check_probes([plan], PROTOCOLS, read_probe)
    flow.check(matrix, engine="standalone", read_config=load_config)
    assert not capsys.readouterr().err
    used = {quantity.encoder for quantity in plan.quantities} | {"random"}
    assert used == set(plan.encoders)  # an encoder that no claim is about is a slip of the pen


def test_a_setting_that_never_lowers_its_rate_is_one_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = read_study(find_study("moco_claims/detection"))
    keys = {**plan.settings["painted"], "SOLVER.MAX_ITER": 100}
    plan, data = replace(plan, settings={"painted": keys}), read_data([plan], [], Path("out"))
    matrix = build_pieces([plan], Path("out"), data, seeds=[0], engine="standalone", device="cpu")
    flow.check(matrix, engine="standalone", read_config=load_config)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the setting painted: SOLVER.MAX_ITER 100 ends the run before")
