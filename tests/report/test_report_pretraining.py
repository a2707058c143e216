"""Pre-training runs in the report: their curves, random weights' level, and what they learned."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from moco_det.foundation.errors import InputError
from moco_det.report import make_report

from .parsed_page import page_of

ENDED = "the encoder ended no better than its random weights"


def write_run(folder: Path, accuracy: float, *, last: int = 40) -> str:
    """A run of 40 iterations with kNN from 33 % to `accuracy`; its checkpoint's sha256."""
    folder.mkdir()
    knn = {"knn_random": 33.0, "knn_margin": 5.0}
    lines: list[dict[str, Any]] = [{"iteration": 0, "knn_accuracy": 33.0, **knn}]
    lines += [{"iteration": i, "loss": 6 - i / 20} for i in (20, 40)]
    lines += [{"iteration": last, "knn_accuracy": accuracy, **knn}]
    if last == 40 and accuracy <= 38.0:
        lines[-1]["warning"] = ENDED
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "checkpoint.pth").write_bytes(folder.name.encode())
    return hashlib.sha256(folder.name.encode()).hexdigest()


def made_from(row: dict[str, Any], digest: str) -> dict[str, Any]:
    row["init"]["source"] = {"sha256": digest}
    return row


def test_pretraining_curves_are_drawn_and_a_folder_without_a_log_is_refused(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    path = write_rows([make_row()])
    folder = tmp_path / "moco_v2"
    folder.mkdir()
    with pytest.raises(InputError, match="moco_v2 holds no metrics.jsonl"):
        make_report([path], tmp_path / "out", pretraining=[folder])
    assert not (tmp_path / "out").exists()
    (folder / "metrics.jsonl").write_text(
        '{"iteration": 0, "loss": 6.9}\n{"iteration": 10, "loss": 5.25}\n', encoding="utf-8"
    )
    page, _ = page_of(path, tmp_path / "out", pretraining=[folder])
    assert "loss against iteration, 5.250 at iteration 10" in page.text


def test_knn_is_drawn_beside_the_loss_with_the_level_of_random_weights(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    write_run(tmp_path / "moco", 61.0)
    path = write_rows([make_row()])
    page, _ = page_of(path, tmp_path / "out", pretraining=[tmp_path / "moco"])
    labels = [a.get("aria-label") for tag, a in page.tags if tag == "svg"]
    assert {"Pre-training loss of moco", "Pre-training kNN accuracy of moco"} <= set(labels)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    chart = html.split('aria-label="Pre-training kNN accuracy of moco"')[1].split("</svg>")[0]
    assert chart.count('class="zero"') == 1 and "random weights</text>" in chart
    said = "The same network's random weights (dashed): 33.0 %."
    assert said in page.text
    assert said in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "learned nothing" not in page.text


@pytest.mark.parametrize("accuracy", [20.0, 38.0])
def test_an_encoder_no_better_than_random_is_named_in_the_section_and_the_verdict(
    accuracy: float, tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    digest = write_run(tmp_path / "run", accuracy)
    write_run(tmp_path / "other", 20.0)  # of no arm here: it stays out of the verdict
    path = write_rows([make_row("supervised"), made_from(make_row("moco"), digest)])
    folders = [tmp_path / "run", tmp_path / "other"]
    page, _ = page_of(path, tmp_path / "out", pretraining=folders)
    markdown = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    for text in (page.text, markdown.replace("**", "")):
        assert f"run, iteration 40: {ENDED}" in text
        assert f"other, iteration 40: {ENDED}" in text
        assert text.count("learned nothing in pre-training that kNN can see") == 1
        assert (
            "moco learned nothing in pre-training that kNN can see: its encoder ended at a kNN "
            f"accuracy of {accuracy} % and its random weights have 33.0 %"
        ) in text


@pytest.mark.parametrize("accuracy, last", [(38.1, 40), (33.0, 20)])
def test_a_better_encoder_and_a_run_that_goes_on_are_not_called_no_better(
    accuracy: float, last: int, tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    digest = write_run(tmp_path / "run", accuracy, last=last)
    path = write_rows([made_from(make_row("moco"), digest)])
    page, _ = page_of(path, tmp_path / "out", pretraining=[tmp_path / "run"])
    assert "learned nothing" not in page.text and "no better" not in page.text


def test_a_run_whose_checkpoint_was_moved_is_still_shown(
    tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    digest = write_run(tmp_path / "run", 20.0)
    (tmp_path / "run" / "checkpoint.pth").unlink()
    path = write_rows([made_from(make_row("moco"), digest)])
    page, _ = page_of(path, tmp_path / "out", pretraining=[tmp_path / "run"])
    assert ENDED in page.text and "learned nothing" not in page.text


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([3.0, 5.0, 4.5, 4.0, 3.5, 3.0], []),  # low while the queue held its random start
        ([6.0, 5.0, 3.0, 3.5, 4.0, 4.5], ["rose from 3.00 to 4.50", "(chance 6.24)"]),
        ([2.0, 6.0, 6.1, 5.9, 5.9, 5.9], ["is 5.90", "near the 6.24"]),
        ([6.0, 4.0, 3.0, 3.1, 3.2, 3.25], []),  # no more than noise
    ],
)
def test_a_loss_that_rises_or_ends_near_chance_is_a_warning(
    losses: list[float], said: list[str], tmp_path: Path, make_row: Any, write_rows: Any
) -> None:
    (tmp_path / "moco").mkdir()
    lines = [
        {"iteration": 20 * i + 20, "loss": losses[i // 5], "chance_loss": 6.238} for i in range(30)
    ]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "moco" / "metrics.jsonl").write_text(text, encoding="utf-8")
    path = write_rows([make_row()])
    page, markdown = page_of(path, tmp_path / "out", pretraining=[tmp_path / "moco"])
    assert ("Warning: moco: the loss" in page.text) == bool(said)
    for part in said:
        assert part in page.text and part in markdown
