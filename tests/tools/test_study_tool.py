"""moco-det study, from its file to the report."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from moco_det.foundation.commands import duration
from moco_det.results import read_rows
from moco_det_tools import cli
from tests.data.builders import write_image

STUDY = """
question: Does MoCo see more than random weights in two steps?
source: nobody
seeds: 2
data: {photos: {}}
pretraining:
  config: demo_moco_r18
  set:
    ENCODER: {ARCH: resnet18_w0.25x, DIM: 16}
    DATA.PATH: $photos
    SOLVER: {MAX_ITER: 2, BATCH: 8, WARMUP_ITERS: 3}
    MOCO.K: 16
    AUGMENT.SIZE: 32
    TENSORBOARD: False
encoders: {moco: {}, idle: {set: {MOCO.K: 8}}}
probes:
  knn: {train: $photos/train, test: $photos/test, options: {k: 1, size: 32}}
hypotheses:
  - {claim: moco.knn > random.knn, least: 200, published: no number}
measure: [moco.loss]
"""


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    for number in range(12):
        split, name = ("train", "test")[number > 7], ("dog", "cat")[number % 2]
        write_image(tmp_path / "photos" / split / name / f"{number}.jpg", seed=number)
    file = tmp_path / "question.yaml"
    file.write_text(STUDY, encoding="utf-8")
    data = f"photos={tmp_path / 'photos'}"
    return [
        "study",
        str(file),
        "--data",
        data,
        "-o",
        str(tmp_path / "out"),
        "--engine",
        "standalone",
    ]


def test_a_study_is_run_judged_and_not_run_again(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--seeds", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 pieces of 3 left" in said and "undecided moco.knn > random.knn" in said
    assert "question: not run, as no claim or measure names it: idle" in said
    assert "warning   moco: MOCO.K 16 is more than the 12 images" in said
    assert "warning   moco: 2 iterations end before the rate has risen to SOLVER.LR" in said
    rows = read_rows([tmp_path / "out"]).rows
    assert [row.arm for row in rows] == ["moco", "random"]
    assert rows[0].data["run"].startswith("knn_moco_seed0_")
    page = (tmp_path / "out" / "report.md").read_text("utf-8")
    assert page.index("Does MoCo see more") < page.index("moco.knn &gt; random.knn")
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert cli.main([*words, "--seeds", "1"]) == 0
    assert "0 pieces of 3 left" in capsys.readouterr().out
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before


def test_what_would_fail_is_told_before_anything_is_made(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(words[1])
    file.write_text(STUDY.replace("AUGMENT.SIZE", "AUGMENT.SIZ"), encoding="utf-8")
    assert cli.main(words) == 2
    assert "the encoder moco: unknown key AUGMENT.SIZ in its config" in capsys.readouterr().err
    file.write_text(STUDY.replace("AUGMENT.SIZE: 32", "AUGMENT.SIZE: ten"), encoding="utf-8")
    assert cli.main(words) == 2
    assert "the encoder moco: AUGMENT.SIZE in its config is 'ten'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    file.write_text(STUDY.replace("$photos/test", "$photos/train"), encoding="utf-8")
    assert cli.main(words) == 2
    assert "error: test of the probe knn" in capsys.readouterr().err
    file.write_text(STUDY, encoding="utf-8")
    assert cli.main([word for word in words if not word.startswith(("photos=", "--data"))]) == 2
    assert "add --data photos=DIR" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_job_array_has_a_task_per_start_of_an_encoder_which_the_study_takes(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--slurm", "--sbatch=--time=1:00:00"]) == 0
    tasks = (tmp_path / "out" / "runs.txt").read_text().split()
    assert [task.rpartition("_")[0] for task in tasks] == [
        *("moco_seed0", "random_seed0", "moco_seed1", "random_seed1"),
    ]
    script = (tmp_path / "out" / "array.sbatch").read_text()
    assert "moco_det_tools.study" in script and "--array=0-3" in script
    (line,) = [line for line in script.splitlines() if "moco_det_tools.study" in line]
    task = shlex.split(line.replace('"$run" &', tasks[0]))
    assert task[0] == "CUDA_VISIBLE_DEVICES="  # another device would make other pieces
    said = capsys.readouterr().out
    assert f"see its report with: moco-det {shlex.join(words)}\n" in said
    assert cli.main(["study", *task[4:], "--dry-run"]) == 0
    assert "2 pieces of 2 left" in capsys.readouterr().out
    assert cli.main([*words, "--only", tasks[0][:-1]]) == 2
    said = capsys.readouterr().err
    assert f"--only {tasks[0][:-1]}: no such trial: did you mean {tasks[0]}?" in said


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("12m", 720), ("1.5h", 5400)])
def test_a_budget_is_a_time_with_its_unit(text: str, seconds: float) -> None:
    assert duration(text) == seconds
