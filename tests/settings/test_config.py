"""Configs: what is merged, what is refused, and that every file in configs/ is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from moco_det.foundation.errors import InputError
from moco_det.settings.config import (
    check,
    dump,
    flatten,
    get_cfg,
    load_config,
    load_yaml,
    merge,
    merge_overrides,
)
from moco_det.settings.values import LIMITS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATA = ["DATASETS.TRAIN", "('train',)", "DATASETS.TEST", "('test',)"]
FILES = sorted(
    file
    for file in CONFIGS.rglob("*.yaml")
    if file.relative_to(CONFIGS).parts[0] not in ("pretrain", "base")
)
QUICK = CONFIGS / "quick" / "R18_FPN.yaml"
BASES = sorted((CONFIGS / "base").glob("*.yaml"))


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def load(folder: Path, text: str, *overrides: str) -> object:
    base = f"_BASE_: {CONFIGS / 'base' / 'RCNN_FPN.yaml'}\n"
    return load_config(write(folder, "c.yaml", base + text), [*DATA, *overrides])


def standalone(file: Path) -> bool:
    """Whether the standalone engine implements the detector of this file (others are refused)."""
    tree, known = flatten(load_yaml(file)), flatten(get_cfg())
    chosen = all(tree.get(key, allowed[0]) in allowed for key, allowed in LIMITS["choices"].items())
    return chosen and tree.keys() <= known.keys()


def test_there_are_configs_and_the_search_sees_them_all() -> None:
    names = {str(file.relative_to(CONFIGS)) for file in FILES}
    assert {"quick/R18_FPN.yaml", "quick/own_R18_FPN.yaml"} <= names
    assert {file.name for file in BASES} >= {"RCNN_FPN.yaml"}
    every = [f for f in CONFIGS.rglob("*.yaml") if "pretrain" not in f.parts]
    assert len(FILES) + len(BASES) == len(every) >= 3


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CONFIGS)))
def test_every_config_loads_or_says_that_it_is_for_the_other_engine(file: Path) -> None:
    # weights are looked for by the engine, not by the config
    if standalone(file):
        cfg = load_config(file, DATA)
        assert cfg.is_frozen() and cfg.INPUT.FORMAT in ("RGB", "BGR")
    else:
        with pytest.raises(InputError, match="standalone engine"):
            load_config(file, DATA)


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(CONFIGS)))
def test_every_config_opens_with_what_it_is_the_number_the_cost_and_the_command(file: Path) -> None:
    head = file.read_text(encoding="utf-8").splitlines()[:8]
    assert all(line.startswith("#") for line in head[:4])
    text = "\n".join(head).lower()
    for word in ("published", "cost", "command"):
        assert f"# {word}:" in text


def test_the_base_is_what_the_paper_fine_tunes() -> None:
    cfg = load_config(CONFIGS / "base" / "RCNN_FPN.yaml", DATA)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0
    assert cfg.MODEL.RESNETS.NORM == cfg.MODEL.FPN.NORM == "SyncBN"
    assert cfg.TEST.PRECISE_BN.ENABLED and cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False


def test_a_child_says_only_what_differs_and_its_word_counts(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "SOLVER: {BASE_LR: 0.5, MAX_ITER: 7, STEPS: [3, 5]}\nSEED: 1")
    write(tmp_path, "b.yaml", "_BASE_: a.yaml\nSOLVER: {MAX_ITER: 8, STEPS: [4]}")
    (tmp_path / "below").mkdir()
    file = write(tmp_path / "below", "c.yaml", "_BASE_: ../b.yaml\nSEED: 2")
    assert load_yaml(file) == {
        "SOLVER": {"BASE_LR": 0.5, "MAX_ITER": 8, "STEPS": [4]},
        "SEED": 2,
    }


def test_overrides_come_last_and_keep_their_types(tmp_path: Path) -> None:
    cfg = load_config(
        write(tmp_path, "c.yaml", f"_BASE_: {CONFIGS / 'base' / 'RCNN_FPN.yaml'}\nSEED: 5"),
        [
            *DATA,
            "SEED",
            "6",
            "MODEL.MASK_ON",
            "True",
            "SOLVER.STEPS",
            "(1, 2)",
            "OUTPUT_DIR",
            "x y",
        ],
    )
    assert (cfg.SEED, cfg.MODEL.MASK_ON, cfg.SOLVER.STEPS) == (6, True, (1, 2))
    assert cfg.OUTPUT_DIR == "x y"


def test_the_dump_is_the_whole_config_and_can_be_read_back(tmp_path: Path) -> None:
    cfg = load_config(QUICK, [*DATA, "SEED", "9"])
    text = dump(cfg)
    assert flatten(yaml.safe_load(text)).keys() == flatten(cfg).keys()
    again = load_config(write(tmp_path, "again.yaml", text))
    assert again == cfg and dump(again) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SEED: 1\nSEED: 2", r"c\.yaml: duplicate yaml key 'SEED' in line 3"),
        ("SOLVER:\n  MAX_ITER: 1\n  MAX_ITER: 1", "duplicate yaml key 'MAX_ITER' in line 4"),
        ("SOLVER: {LR: 0.1}", r"c\.yaml: .*SOLVER\.LR"),
        ("NOTHING: 1", "NOTHING"),
        ("MODEL: 3", "MODEL"),
        ("MODEL: {MASK_ON: {A: 1}}", r"MODEL\.MASK_ON\.A"),
        ("SOLVER: {MAX_ITER: many}", "MAX_ITER"),
        ("SOLVER: {MAX_ITER: 1.5}", "MAX_ITER"),
        ("SOLVER: {MAX_ITER: 0}", r"SOLVER\.MAX_ITER is 0"),
        ("SOLVER: {BASE_LR: .nan}", r"SOLVER\.BASE_LR is nan"),
        ("SOLVER: {LR_SCHEDULER_NAME: Step}", r"LR_SCHEDULER_NAME is 'Step'.*WarmupCosineLR"),
        ("INPUT: {FORMAT: YUV}", r"INPUT\.FORMAT is 'YUV'"),
        ("INPUT: {MIN_SIZE_TRAIN_SAMPLING: range}", r"INPUT\.MIN_SIZE_TRAIN .*range"),
        ("INPUT: {MIN_SIZE_TRAIN: []}", r"INPUT\.MIN_SIZE_TRAIN"),
        ("MODEL: {RESNETS: {DEPTH: 20}}", r"MODEL\.RESNETS\.DEPTH is 20"),
        ("MODEL: {RESNETS: {DEPTH: 18}}", "RES2_OUT_CHANNELS must be 64"),
        (
            "MODEL: {RESNETS: {DEPTH: 18, STEM_OUT_CHANNELS: 32, RES2_OUT_CHANNELS: 64}}",
            "RES2_OUT_CHANNELS must be 32 for ResNet-18 and -34, as STEM_OUT_CHANNELS is, not 64",
        ),
        ("MODEL: {BACKBONE: {FREEZE_AT: 2}}", "FREEZE_AT 2 would freeze randomly"),
        ("DATASETS: {TRAIN: []}", None),
        ("- a list", "not a list"),
        ("a: [", "not valid yaml"),
        ("? [a, b]\n: 1", r"c\.yaml: the key in line 2"),
        ("!!python/object:os.system {}", "not valid yaml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str | None) -> None:
    if message is None:
        with pytest.raises(InputError, match=r"DATASETS\.TRAIN"):
            load_config(QUICK)
        return
    with pytest.raises(InputError, match=message):
        if text.startswith("-"):
            load_config(write(tmp_path, "c.yaml", text))
        else:
            load(tmp_path, text)


@pytest.mark.parametrize("base", ["gone.yaml", "[a.yaml]", "3"])
def test_a_base_that_is_not_there_or_no_name_is_bad_input(tmp_path: Path, base: str) -> None:
    with pytest.raises(InputError, match="_BASE_|does not exist"):
        load_config(write(tmp_path, "c.yaml", f"_BASE_: {base}"), DATA)


def test_bases_in_a_circle_are_bad_input(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "_BASE_: b.yaml")
    write(tmp_path, "b.yaml", "_BASE_: a.yaml")
    with pytest.raises(InputError, match=r"_BASE_ leads back to itself"):
        load_yaml(tmp_path / "a.yaml")


def test_missing_empty_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml does not exist: check the path"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_config(tmp_path / "b.yaml")
    assert load_yaml(write(tmp_path, "empty.yaml", "")) == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SEED"], "KEY VALUE pairs: 'SEED'"),
        (["SEED", "1", "OUTPUT_DIR"], "KEY VALUE pairs: 'OUTPUT_DIR'"),
        (["SOLVER.LR", "1"], r"unknown key SOLVER\.LR on the command line"),
        (["SOLVER", "1"], "unknown key SOLVER"),
        (["--engine", "standalone"], "unknown key --engine .*options stand before"),
        (["DATASETS.TEST", "()"], r"add DATASETS\.TRAIN"),
        (["SEED", "many"], "on the command line: .*SEED"),
        (["SOLVER.MAX_ITER", "-5"], r"SOLVER\.MAX_ITER is -5"),
    ],
)
def test_wrong_overrides_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(tmp_path, "", *overrides)


def test_frozen_stages_are_fine_with_weights(tmp_path: Path) -> None:
    assert load(tmp_path, "MODEL: {WEIGHTS: a.pkl, BACKBONE: {FREEZE_AT: 2}}")


def test_every_rule_is_about_a_key_that_exists_and_allows_something() -> None:
    known = flatten(get_cfg())
    for keys in LIMITS.values():
        assert set(keys) <= set(known)
    cfg = get_cfg()
    merge(cfg, load_yaml(CONFIGS / "base" / "RCNN_FPN.yaml"), source="base")
    merge_overrides(cfg, DATA)
    check(cfg)
    for key, allowed in LIMITS["choices"].items():
        assert flatten(cfg)[key] in allowed, key


@pytest.mark.detectron2
def test_keys_and_defaults_are_detectron2s() -> None:
    detectron2_config = pytest.importorskip("detectron2.config")
    from moco_det.plugin import add_moco_det_config

    cfg = detectron2_config.get_cfg()
    add_moco_det_config(cfg)
    theirs = flatten(cfg)
    assert {k: v for k, v in flatten(get_cfg()).items() if k not in theirs or theirs[k] != v} == {}
