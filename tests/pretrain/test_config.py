from __future__ import annotations

import re
from pathlib import Path

import pytest

from moco_det.foundation.errors import InputError
from moco_det.results.published import find_table
from pretrain.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "pretrain"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_all_config_files_were_found() -> None:
    names = {str(p.relative_to(CONFIGS)) for p in FILES}
    assert set(PUBLISHED) <= names
    assert names - set(PUBLISHED) == {
        "inst_disc_proximal_r50_in1m_200ep.yaml",
        "ablation/moco_v1_k4096_m0.yaml",
        "ablation/moco_v1_no_shuffle.yaml",
        *(f"quick/{name}_r18.yaml" for name in QUICK),
        "speedrun/caltech101_r18.yaml",
    }


# Each config with a published number: table, row and column of moco_det/results/data.
PUBLISHED = {
    "moco_v1_r50_in1m_200ep.yaml": ("moco_v1.fig3", "moco", "K65536"),
    "moco_v1_rx50_32x8d_in1m_200ep.yaml": ("moco_v1.table1", "moco_2", "probe.top1"),
    "moco_v1_r50w2x_in1m_200ep.yaml": ("moco_v1.table1", "moco_3", "probe.top1"),
    "moco_v1_r50w4x_in1m_200ep.yaml": ("moco_v1.table1", "moco_4", "probe.top1"),
    "moco_v1_r50_ig1b.yaml": ("moco_v1.table2a", "moco_ig_1b", "voc.AP"),
    "moco_v2_r50_in1m_200ep.yaml": ("moco_v2.linear", "moco_v2_200_epochs", "probe.top1"),
    "moco_v2_r50_in1m_800ep.yaml": ("moco_v2.linear", "moco_v2_800_epochs", "probe.top1"),
    "supervised_r50_in1m_90ep.yaml": ("moco_v2.linear", "supervised", "probe.top1"),
    "end_to_end_r50_in1m_200ep.yaml": ("moco_v1.fig3", "end_to_end", "K1024"),
    "memory_bank_r50_in1m_200ep.yaml": ("moco_v1.fig3", "memory_bank", "K65536"),
    "inst_disc_r50_in1m_200ep.yaml": (
        "moco_v1.fn2_membank_nce",
        "instdisc_as_cited_61",
        "probe.top1",
    ),
    "ablation/moco_v2_a_mlp.yaml": ("moco_v2.linear", "moco_v2_ablation_a_mlp", "probe.top1"),
    "ablation/moco_v2_b_aug.yaml": ("moco_v2.linear", "moco_v2_ablation_b_aug", "probe.top1"),
    "ablation/moco_v2_c_mlp_aug.yaml": (
        "moco_v2.linear",
        "moco_v2_ablation_c_mlp_aug",
        "probe.top1",
    ),
    **{
        f"ablation/moco_v1_k4096_m{m}.yaml": ("moco_v1.momentum", "moco_k_4096", f"m{m}")
        for m in ("0.9", "0.99", "0.999", "0.9999")
    },
    **{
        f"ablation/moco_v1_k{k}.yaml": ("moco_v1.fig3", "moco", f"K{k}")
        for k in (256, 512, 1024, 16384)
    },
    **{
        f"ablation/memory_bank_k{k}.yaml": ("moco_v1.fig3", "memory_bank", f"K{k}")
        for k in (256, 512, 1024, 4096, 16384)
    },
    **{
        f"ablation/end_to_end_batch{b}.yaml": ("moco_v1.fig3", "end_to_end", f"K{b}")
        for b in (256, 512)
    },
}
QUICK = (
    "demo_inst_disc",
    "demo_moco",
    "demo_supervised",
    "end_to_end",
    "inst_disc",
    "memory_bank",
    "moco_v2",
    "supervised",
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_config_opens_with_the_number_that_was_published(name: str) -> None:
    table, row, column = PUBLISHED[name]
    number = find_table(table).row(row).values[column]
    line = (CONFIGS / name).read_text().splitlines()[1]
    assert f" {number} " in line.replace(",", " ")


def test_what_the_ablations_change_is_what_their_names_say() -> None:
    base = load_config(CONFIGS / "moco_v1_r50_in1m_200ep.yaml")
    assert (base.MOCO.K, base.MOCO.M) == (65536, 0.999)
    for path in (CONFIGS / "ablation").glob("*.yaml"):
        cfg = load_config(path)
        for part in path.stem.split("_"):
            if re.fullmatch(r"k\d+", part):
                node = cfg.MOCO if cfg.METHOD == "moco" else cfg.MEMORY_BANK
                assert int(part[1:]) == node.K
            if re.fullmatch(r"m[\d.]+", part):
                assert float(part[1:]) == cfg.MOCO.M
            if part.startswith("batch"):
                assert int(part[5:]) == cfg.SOLVER.BATCH
                assert pytest.approx(0.03 * cfg.SOLVER.BATCH / 256) == cfg.SOLVER.LR
        assert cfg.MOCO.SHUFFLE is (path.stem != "moco_v1_no_shuffle")
        assert cfg.SOLVER.EPOCHS == 200
        assert f"runs/pretrain/{path.stem}" == cfg.OUTPUT_DIR


def test_a_billion_images_are_trained_on_as_the_paper_says() -> None:
    cfg = load_config(CONFIGS / "moco_v1_r50_ig1b.yaml")
    assert (cfg.SOLVER.BATCH, cfg.SOLVER.LR, cfg.SOLVER.MAX_ITER) == (1024, 0.12, 1_250_000)
    solver = (cfg.SOLVER.SCHEDULE, cfg.SOLVER.GAMMA, cfg.SOLVER.GAMMA_EVERY)
    assert solver == ("exponential", 0.9, 62_500)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_config_file_loads_and_opens_with_its_four_lines(path: Path) -> None:
    cfg = load_config(path)
    lines = path.read_text().splitlines()
    assert path.parent != CONFIGS or (cfg.PRECISION, "in float32" in lines[2]) == ("float32", True)
    assert all(line.startswith("# ") for line in lines[:4])
    assert not lines[4].startswith("#")
    starts = [line[2:].split(":")[0] for line in lines[1:4]]
    assert starts == ["Published", "Cost", "Command"]
    assert path.relative_to(CONFIGS.parent).with_suffix("").as_posix() in lines[3]


def test_published_hyper_parameters_are_those_of_the_papers() -> None:
    v1 = load_config(CONFIGS / "moco_v1_r50_in1m_200ep.yaml")
    v2 = load_config(CONFIGS / "moco_v2_r50_in1m_200ep.yaml")
    for cfg in (v1, v2):
        assert cfg.PRECISION == "float32"  # as the released code
        assert (cfg.MOCO.K, cfg.MOCO.M, cfg.ENCODER.DIM) == (65536, 0.999, 128)
        assert (cfg.SOLVER.BATCH, cfg.SOLVER.LR, cfg.SOLVER.EPOCHS) == (256, 0.03, 200)
        assert (cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY) == (0.9, 1e-4)
    assert (v1.MOCO.T, v1.ENCODER.HEAD, v1.SOLVER.MILESTONES) == (0.07, "fc", [120, 160])
    assert (v2.MOCO.T, v2.ENCODER.HEAD, v2.SOLVER.SCHEDULE) == (0.2, "mlp", "cosine")
    assert load_config(CONFIGS / "moco_v2_r50_in1m_800ep.yaml").SOLVER.EPOCHS == 800


def test_the_quick_arms_differ_in_the_method_alone() -> None:
    moco, supervised = (
        load_config(CONFIGS / "quick" / f"{name}.yaml")
        for name in ("moco_v2_r18", "supervised_r18")
    )
    for key in ("ENCODER", "AUGMENT", "SOLVER", "DATA", "SEED", "PRECISION"):
        assert moco.plain()[key] == supervised.plain()[key]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MOCO:\n  TEMPERATURE: 0.1\n", "unknown key MOCO.TEMPERATURE"),
        ("MOKO:\n  K: 1\n", "unknown key MOKO.K.*did you mean MOCO.K"),
        ("MOCO: 3\n", "unknown key MOCO "),
        ("SEED: 1\nSEED: 2\n", "duplicate yaml key .SEED. in line 2"),
        ("MOCO:\n  K: 1\n  K: 2\n", "duplicate yaml key .K. in line 3"),
        ("SOLVER:\n  BATCH: many\n", "SOLVER.BATCH.*'many'.*must be int"),
        ("SOLVER:\n  BATCH: true\n", "SOLVER.BATCH.*must be int"),
        ("DATA:\n  STRICT: 1\n", "DATA.STRICT.*must be bool"),
        ("- a\n", "a config is a mapping"),
        ("a: [1\n", "is not valid yaml"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml does not exist"),
        ("_BASE_: bad.yaml\n", "leads back to itself"),
    ],
)
def test_a_bad_file_is_one_error_naming_the_key(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_config(write(tmp_path / "bad.yaml", text))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["--engine", "x"], "unknown key --engine .*options stand before"),
        (["SOLVER.BACH", "3"], "unknown key SOLVER.BACH on the command line.*SOLVER.BATCH"),
        (["SOLVER.BATCH"], "'SOLVER.BATCH' has no value"),
        (["SOLVER.BATCH", "1.5"], "must be int"),
        (["METHOD", "simclr"], "METHOD is 'simclr': choose one of moco, end_to_end"),
        (["MOCO.M", "1.5"], "MOCO.M is 1.5: it must be from 0 to 1"),
        (["MOCO.K", "0"], "MOCO.K is 0: it must be at least 1 and finite"),
        (["SOLVER.EPOCHS", "2"], "SOLVER.EPOCHS is 2 and SOLVER.MAX_ITER is 9"),
        (["SOLVER.SCHEDULE", "step"], "MILESTONES belongs to the step schedule"),
        (["ENCODER.BN_SPLITS", "200"], "ENCODER.BN_SPLITS 200"),
    ],
)
def test_a_bad_override_is_one_error_naming_the_key(pairs: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(None, ["SOLVER.MAX_ITER", "9", *pairs])


def test_child_over_base_and_overrides_over_both(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "SEED: 1\nMOCO:\n  K: 5\n  M: 0.5\nSOLVER:\n  MAX_ITER: 3\n")
    child = write(tmp_path / "child.yaml", "_BASE_: base.yaml\nMOCO:\n  K: 6\n")
    cfg = load_config(child, ["SEED", "2", "OUTPUT_DIR", "123", "SOLVER.LR", "1e-3"])
    assert (cfg.MOCO.K, cfg.MOCO.M, cfg.SEED, cfg.OUTPUT_DIR) == (6, 0.5, 2, "123")
    assert cfg.SOLVER.LR == 1e-3


def test_a_rate_without_a_dot_in_yaml_is_a_number(tmp_path: Path) -> None:
    cfg = load_config(write(tmp_path / "a.yaml", "SOLVER:\n  LR: 1e-3\n  MAX_ITER: 1\n"))
    assert cfg.SOLVER.LR == 1e-3
