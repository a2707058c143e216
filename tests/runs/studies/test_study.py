"""A study's file, the pieces it needs, and their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from moco_det.foundation.atomic import try_lock
from moco_det.foundation.errors import InputError
from moco_det.results.claims import Quantity
from moco_det.runs.studies import flow, pieces
from moco_det.runs.studies.data_sets import Painted, StudyData, read_data
from moco_det.runs.studies.pieces import PROBE, Matrix, build_pieces
from moco_det.runs.studies.study import StudyPlan, read_study
from moco_det.runs.suites.matrix import SuiteArm
from pretrain.probe.options import PROTOCOLS
from tests.runs.studies.conftest import read_probe

TREE: dict[str, Any] = {
    "question": "Is it so?",
    "seeds": 3,
    "data": {"world": {}},
    "pretraining": {
        "config": "demo_moco_r18",
        "set": {"DATA.PATH": "$world/images", "SOLVER.MAX_ITER": 4},
    },
    "encoders": {"fast": {"set": {"MOCO.M": 0.5}}, "slow": {"set": {"MOCO.M": 0.99}}},
    "probes": {"knn": {"train": "$world/a", "test": "$world/b", "options": {"k": 3}}},
    "settings": {
        name: {
            "config": "demo_R18_FPN",
            "set": {
                "DATASETS": {"TRAIN": ["voc://$world?split=train"], "TEST": ["voc://x"]},
                **keys,
            },
        }
        for name, keys in (("short", {}), ("long", {"SOLVER.MAX_ITER": 400}))
    },
    "hypotheses": [
        {"claim": "fast.knn > slow.knn", "least": 1},
        {"claim": "fast.AP at short > random.AP at short", "least": 1},
    ],
}


def write(folder: Path, name: str = "x", **changes: Any) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**TREE, **changes}), encoding="utf-8")
    return file


def pieces_of(*studies: StudyPlan, seeds: Any = None, device: str = "cpu") -> Matrix:
    given = {} if studies[0].data["world"] else {"world": Path("/w")}
    data = StudyData(studies[0].data, given, Path("out"))
    return build_pieces(studies, Path("out"), data, seeds=seeds, engine="standalone", device=device)


def names(matrix: Matrix) -> list[str]:
    """Without digests, in order."""
    return [piece.name.replace(".pkl", "").rpartition("_")[0] for piece in matrix.pieces]


def test_nothing_runs_that_no_hypothesis_needs(tmp_path: Path) -> None:
    found = names(pieces_of(read_study(write(tmp_path)), seeds=[0]))
    assert found == ["fast_seed0", "knn_fast_seed0", "slow_seed0", "knn_slow_seed0", "fast_seed0",
                     "fast_seed0", "random_seed0"]  # fmt: skip


def test_the_first_two_seeds_of_every_hypothesis_come_before_any_third(tmp_path: Path) -> None:
    matrix = pieces_of(read_study(write(tmp_path)))
    seeds = [int(name.rpartition("seed")[2]) for name in names(matrix)]
    assert set(seeds[:14]) == {0, 1} and set(seeds[14:]) == {2}
    knn = [i for i, name in enumerate(names(matrix)[:14]) if name.startswith("knn")]
    detectors = [i for i, piece in enumerate(matrix.pieces[:14]) if piece.run]
    assert max(knn) < min(detectors)  # of the second hypothesis


def test_a_piece_needs_its_encoder_and_a_detector_its_conversion(tmp_path: Path) -> None:
    matrix = pieces_of(read_study(write(tmp_path)), seeds=[0])
    by_name = {piece.name: piece for piece in matrix.pieces}
    for piece in matrix.pieces:
        assert all(name in by_name for name in piece.needs)
    detector = next(p for p in matrix.pieces if p.run and p.run.arm.name == "fast")
    (conversion,) = detector.needs
    (encoder,) = by_name[conversion].needs
    assert conversion == f"{encoder}.pkl"
    assert detector.trial == encoder == by_name[conversion].trial


def test_studies_share_what_they_have_in_common(tmp_path: Path) -> None:
    one = read_study(write(tmp_path, "one"))
    other = read_study(write(tmp_path, "other", hypotheses=[{"claim": "fast.knn > random.knn"}]))
    alone, both = pieces_of(one, seeds=[0]), pieces_of(one, other, seeds=[0])
    assert len(both.pieces) == len(alone.pieces) + 1  # the probe of random weights
    quantity = Quantity("fast", "knn", "")
    assert both.measures["one", quantity, 0] == both.measures["other", quantity, 0]


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"seeds": 3}, set()),
        ({"data": {"world": {"painted": {"seed": 1}}}}, {"fast", "slow", "knn", "random"}),
        (
            {"encoders": {**TREE["encoders"], "fast": {"set": {"MOCO.M": 0.6}}}},
            {"fast", "knn_fast"},
        ),
    ],
)
def test_a_piece_is_another_where_what_makes_it_has_changed(
    changes: dict[str, Any], changed: set[str], tmp_path: Path
) -> None:
    before = {p.name for p in pieces_of(read_study(write(tmp_path)), seeds=[0]).pieces}
    after = {p.name for p in pieces_of(read_study(write(tmp_path, **changes)), seeds=[0]).pieces}
    gone = {name.partition("_seed")[0] for name in before - after}
    assert {name if name != "knn" else name for name in gone} == {
        full for full in {n.partition("_seed")[0] for n in before}
        if any(full == c or full.startswith(f"{c}_") for c in changed)
    }  # fmt: skip


def test_a_study_begun_on_a_gpu_is_gone_on_with_on_a_cpu(tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    there, here = (
        [p.name for p in pieces_of(study, device=device).pieces] for device in ("", "cpu")
    )
    assert there == here and any(p.run for p in pieces_of(study).pieces)
    texts = {device: pieces_of(study, device=device).pieces[0].config for device in ("", "cpu")}
    assert texts[""] and "COMPILE: true" in texts[""][1]
    assert texts["cpu"] and "COMPILE" not in texts["cpu"][1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": ""}, "has a 'question' and 'hypotheses'"),
        ({"hypotheses": []}, "has a 'question' and 'hypotheses'"),
        ({"hypotheses": [{"claim": "fst.knn > slow.knn"}]}, "no encoder fst: did you mean fast"),
        (
            {"hypotheses": [{"claim": "fast.kn > slow.knn"}]},
            "no probe or metric kn: did you mean knn",
        ),
        (
            {"hypotheses": [{"claim": "fast.AP > slow.AP"}]},
            r"name one of its settings \(long, short\)",
        ),
        ({"hypotheses": [{"claim": "fast.knn at short > slow.knn"}]}, "leave out 'at short'"),
        ({"hypotheses": [{"claim": "fast.knn ~ slow.knn"}]}, "needs a 'least'"),
        ({"hypotheses": [{"claim": "random.loss > slow.loss"}]}, "it has no log"),
        ({"hypotheses": [{"claim": "fast.knn > slow.knn", "lest": 1}]}, "unknown key lest"),
        (  # as yaml reads {claim: knn rises over fast, slow}
            {"hypotheses": [{"claim": "knn rises over fast", "slow": None}]},
            "unknown key slow .* without a value; text with a comma stands in",
        ),
        ({"hypotheses": [{"claim": "fast.knn"}]}, r"x\.yaml: the claim 'fast.knn' is none"),
        (
            {"encoders": {"fast": {"weights": "a.pth", "set": {"MOCO.M": 1}}}},
            "has weights: leave out",
        ),
        ({"hypotheses": [{"claim": "fast.knn > fast.knn"}]}, "names a quantity twice"),
        ({"encoders": {"random": {"set": {"MOCO.M": 1}}}}, "without pre-training: choose another"),
        ({"encoders": {"random": {"weights": "a.pth"}}}, "without pre-training: choose another"),
        ({"encoders": {"fast": {"set": {"SEED": 1}}}}, "SEED is set by the study"),
        ({"pretraining": {"set": {"OUTPUT_DIR": "a"}}}, "OUTPUT_DIR is set by the study"),
        ({"settings": {"short": {"set": {"MODEL": {"WEIGHTS": "a"}}}}}, "WEIGHTS is set by"),
        ({"encoders": {"fa.st": {}}}, "the name 'fa.st'"),
        ({"encoders": {1: {}}}, "the name 1"),
        ({"encoders": {"f" * 61: {}}}, "up to 60 letters"),
        ({"seeds": 10**9}, "seeds is 1000000000"),
        ({"measure": ["slow.loss - fast.loss"]}, "write one quantity in a line"),
        ({"encoders": {"fast": {"set": {"ENCODER.ARCH": ["a"]}}}}, "unknown ENCODER.ARCH"),
        ({"probes": {"AP": {"train": "a", "test": "b"}}}, "cannot be called AP"),
        ({"probes": {"knn": {"train": "a"}}}, "needs 'train' and 'test'"),
        ({"probes": {"knn": {"protocol": "svm", "train": "a", "test": "b"}}}, "choose one of knn"),
        ({"settings": {"short": {"config": "demo_R18_FPN"}}}, "has no DATASETS.TRAIN"),
        ({"pretraining": {"config": "no_such"}}, "no_such does not exist"),
    ],
)
def test_what_a_study_cannot_mean_is_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read_study(write(tmp_path, **changes))


def test_the_folder_of_a_data_set_and_its_recipe_are_in_the_key(tmp_path: Path) -> None:
    plan = read_study(write(tmp_path, data={"world": {"painted": {"seed": 1}}}))
    braces = {**TREE["pretraining"], "set": {"DATA.PATH": "${world}/images"}}
    other = read_study(
        write(tmp_path, data={"world": {"painted": {"seed": 2}}}, pretraining=braces)
    )
    keys = set()
    for study in (plan, other):
        for given in ({}, {"world": Path("/a")}, {"world": Path("/b")}):
            data = StudyData(study.data, given, tmp_path)
            matrix = build_pieces(
                [study], tmp_path, data, seeds=[0], engine="standalone", device="cpu"
            )
            keys.add(matrix.pieces[0].name)
    assert len(keys) == 6
    mosaics: dict[str, Any] = {"m": {"mosaics": {"of": "$photos"}}, "photos": {}}
    found = StudyData(mosaics, {"photos": Path("/p")}, tmp_path).described("$m/photos")
    assert found == {"m": mosaics["m"], "photos": "/p"}


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({}, "add --data world=DIR"),
        ({"printed": {}}, "write one of painted, mosaics"),
        ("foo", "write one of painted, mosaics"),
        ([1], "write one of painted, mosaics"),
        ({"painted": [1]}, "the data set world is"),
        ({"painted": {"sed": 1}}, "unknown key sed"),
        ({"painted": {"seed": -1}}, "seed is -1"),
        ({"painted": {"size": 10**6}}, "size is 1000000"),
        ({"painted": {"unlabelled": 10**12}}, "unlabelled is 1000000000000"),
        ({"painted": {"classes": ["nope"]}}, "'nope' is none"),
        ({"painted": {"classes": []}}, "'none' is none"),
        ({"painted": {"objects": [5, 1]}}, "objects is"),
        ({"mosaics": {}}, "mosaics are made of photos"),
        ({"mosaics": {"of": "$wrld"}}, r"'\$wrld' names a data set .* its 'data' are world"),
    ],
)
def test_data_that_cannot_be_made_are_told_before_anything_is(
    recipe: Any, message: str, tmp_path: Path
) -> None:
    study = read_study(write(tmp_path, data={"world": recipe}))
    with pytest.raises(InputError, match=message):
        read_data([study], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_are_given_must_be_there_and_asked_for(tmp_path: Path) -> None:
    study = read_study(write(tmp_path))
    for words in (["world=/nowhere"], ["world"], ["wrld=/tmp"], ["world=/tmp", "world=/"]):
        with pytest.raises(InputError, match="--data w"):
            read_data([study], words, tmp_path)
    with pytest.raises(InputError, match="two studies have one name"):
        read_data([study, study], ["world=/tmp"], tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kk": 5}, "unknown option kk: did you mean k"),
        ({"results": "/etc"}, "unknown option results"),
        ({"k": 0}, "--k is 0"),
        ({"k": "many"}, "x: the probe knn: argument --k: invalid int value: 'many'"),
        ({"features": "heads"}, "argument --features: invalid choice: 'heads'"),
        ({"size": 8}, "--size is 8"),
        ({"precision": "half"}, "argument --precision: invalid choice"),
    ],
)
def test_options_that_no_probe_has_are_told_before_the_pre_training(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    probes = {"knn": {**TREE["probes"]["knn"], "options": options}}
    with pytest.raises(InputError, match=message):
        flow.check_probes([read_study(write(tmp_path, probes=probes))], PROTOCOLS, read_probe)


def test_an_option_with_several_values_reaches_the_probe(tmp_path: Path) -> None:
    own = {"protocol": "linear", "options": {"epochs": 9, "milestones": [3, 6]}}
    study = read_study(write(tmp_path, probes={"knn": {**TREE["probes"]["knn"], **own}}))
    flow.check_probes([study], PROTOCOLS, read_probe)
    (command, *_) = [one.command for one in pieces_of(study).pieces if "probes" in one.folder.parts]
    assert read_probe(command[len(PROBE) :]).milestones == [3, 6]


def test_weights_are_a_file_beside_the_study_or_an_address(tmp_path: Path) -> None:
    encoders = {**TREE["encoders"], "a": {"weights": "a.pth"}, "b": {"weights": "https://x/b.pth"}}
    found = read_study(write(tmp_path, encoders=encoders)).encoders
    assert found["a"].weights == str(tmp_path / "a.pth") and found["b"].weights == "https://x/b.pth"


def test_weights_that_are_there_are_fetched_once_and_probed_and_detected_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def fetch(name: str) -> Path:
        fetched.append(name)
        return tmp_path / "b.pth"

    def arms(words: list[str], **_: Any) -> list[SuiteArm]:
        assert words == [f"fast={tmp_path / 'b.pth'}"]
        return [SuiteArm("fast", tmp_path / "b.pkl", "5ha", {}, "resnet18")]

    monkeypatch.setattr(pieces, "local_path", fetch)
    monkeypatch.setattr(pieces, "read_arms", arms)
    encoders = {**TREE["encoders"], "fast": {"weights": "https://x/b.pth"}}
    made = pieces_of(read_study(write(tmp_path, encoders=encoders))).pieces
    mine = [piece for piece in made if piece.trial.startswith("fast_")]
    assert fetched == ["https://x/b.pth"] and len(mine) == 6 and not any(p.needs for p in mine)
    assert all(str(tmp_path / "b.pth") in one.command for one in mine if not one.run)
    assert {one.run.arm.weights for one in mine if one.run} == {tmp_path / "b.pkl"}


def test_tasks_that_start_together_make_the_data_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = []

    def make(self: Painted, folder: Path) -> None:
        with (tmp_path / ".claim.data").open() as other:
            alone.append(not try_lock(other))

    monkeypatch.setattr(Painted, "make", make)
    StudyData({"world": {"painted": {}}}, {}, tmp_path).make()
    assert alone == [True]
