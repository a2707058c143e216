"""The papers' detectors from one checkpoint on photographs: both engines train and score alike.

Nothing is left to chance (`benchmarks/both_engines.py` makes the runs). What is compared is then
the whole of training: reading, resizing, targets, losses, gradients, learning rate, weight decay,
BN, AP.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.both_engines import ENGINES, STEMS, Run, read_run, report, settings, start_of
from moco_det.foundation.errors import InputError
from moco_det_tools.entry import run
from moco_det_tools.train_net import main

ITERATIONS = 4  # rounding grows from step to step in a network that starts random


@pytest.mark.detectron2
@pytest.mark.slow
@pytest.mark.parametrize("stem", STEMS)
def test_losses_detections_and_ap_are_the_same(
    stem: str, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("detectron2")
    file, keys = start_of(stem, data_root, tmp_path, number=2, iterations=ITERATIONS)
    pair = {}
    for engine in ENGINES:
        own = {**keys, "OUTPUT_DIR": str(tmp_path / engine)}
        argv = ["--engine", engine, "--config-file", file, *[x for kv in own.items() for x in kv]]
        assert run(lambda argv=argv: main(argv)) == 0
        pair[engine] = read_run(tmp_path / engine)
    ours, theirs = pair.values()
    assert len(ours.losses) == len(theirs.losses) == ITERATIONS
    for step, (mine, other) in enumerate(zip(ours.losses, theirs.losses, strict=True)):
        assert mine.keys() == other.keys()
        assert mine == pytest.approx(other, rel=1e-3, abs=1e-5), f"iteration {step}"
    assert ours.metrics.keys() == theirs.metrics.keys()
    for metric in ours.metrics:
        mine, other = ours.metrics[metric]["AP50"], theirs.metrics[metric]["AP50"]
        assert mine == pytest.approx(other, abs=1.0), metric
    assert len(ours.detections) == len(theirs.detections) > 0


def made(first: float, ap: float | None) -> Run:
    losses = [{"total_loss": first}, {"total_loss": 2.0}]
    return Run(losses, {"voc": {"AP": ap, "AP50": 4.0}}, [], {"voc": {"AP": 6.0, "AP50": 7.0}})


def test_the_tables_have_both_engines_beside_each_other() -> None:
    text = report({"voc_x": {"standalone": made(1.01, None), "detectron2": made(1.0, 3.0)}})
    assert "| 0 | 1.0100 | 1.0000 |" in text and "| 1 | 2.0000 | 2.0000 |" in text
    assert "voc_x: total losses differ by at most 1.0e-02" in text
    assert "| voc_x | standalone | 2 | voc | - | 6.00 | 4.00 | 7.00 |" in text
    assert "| voc_x | detectron2 | 2 | voc | 6.00 | 3.00 | 7.00 | 4.00 |" in text


def test_a_folder_without_the_samples_is_refused_by_name(tmp_path: Path) -> None:
    for stem in ("voc_R50_C4_24k", "coco_R50_C4_1x"):
        with pytest.raises(InputError, match="sample"):
            start_of(stem, tmp_path, tmp_path / "out", number=2, iterations=1)


def test_every_image_is_in_every_batch() -> None:
    keys = settings("coco_R50_FPN_1x", "data", images=3, iterations=5)
    assert (keys["SOLVER.IMS_PER_BATCH"], keys["SOLVER.MAX_ITER"]) == ("3", "5")
    assert keys["DATASETS.TRAIN"] == keys["DATASETS.TEST"] == "('data',)"
