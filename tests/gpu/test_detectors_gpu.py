"""The detectors of both engines on a GPU, in every precision that it has."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import roi_align

from moco_det.data import load_dataset
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.precision import Precision
from moco_det.settings.config import load_config
from moco_det.settings.engine import RunOptions
from moco_det.standalone import engine
from moco_det.standalone.build import build_detector, build_mapper
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.evaluate import predict
from moco_det.standalone.mapper import Sample
from moco_det.standalone.roi_align import ROIPooler
from tests.standalone.targets import rois_of_images
from tests.standalone.test_run import stop_before_step
from tests.standalone.tiny import run
from tests.standalone.trained import (
    DETECTORS,
    agreement,
    briefly_trained,
    detections,
    overrides_of,
)

pytestmark = pytest.mark.gpu

PRECISIONS = ["float32", "bfloat16", "float16"]
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def run_of(
    name: str,
    device: str,
    paths: ScenesPaths,
    output: Path,
    *,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    resume: bool = False,
    keys: dict[str, str] | None = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics and the lines of the log of a run of four steps."""
    if (precision, device) == ("float16", "cpu"):
        pytest.skip("float16 takes minutes on a CPU")
    monkeypatch.setattr(engine, "choose_precision", lambda **_: Precision(precision, device))
    changes = {
        "MODEL.DEVICE": device,
        "DATASETS.TRAIN": repr((paths.train,)),
        "DATASETS.TEST": repr((paths.test,)),
        "OUTPUT_DIR": repr(str(output)),
        **(keys or {}),
    }
    metrics = run(load_config(*overrides_of(name, changes)), RunOptions(name, resume=resume))
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return metrics, [line for line in lines if "total_loss" in line]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_trains_and_is_scored(
    name: str,
    precision: str,
    device: str,
    painted: ScenesPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metrics, lines = run_of(
        name, device, painted, tmp_path / "run", precision=precision, monkeypatch=monkeypatch
    )
    assert [line["iteration"] for line in lines] == [0, 1, 2, 3]
    assert all(math.isfinite(line["total_loss"]) for line in lines)
    assert set(metrics) == ({"bbox", "segm"} if "masks" in name else {"bbox"})
    assert (tmp_path / "run" / "results.jsonl").is_file()


@pytest.mark.parametrize("graphs", ["False", "True"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["FPN masks", "C4 masks"])
def test_a_stopped_run_goes_on(
    name: str,
    precision: str,
    graphs: str,
    device: str,
    painted: ScenesPaths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape: dict[str, Any] = {"precision": precision, "monkeypatch": monkeypatch}
    shape["keys"] = {"SOLVER.CUDA_GRAPHS": graphs}
    _, whole = run_of(name, device, painted, tmp_path / "whole", **shape)
    with monkeypatch.context() as patch:
        stop_before_step(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run_of(name, device, painted, tmp_path / "parts", **{**shape, "monkeypatch": patch})
    _, parts = run_of(name, device, painted, tmp_path / "parts", resume=True, **shape)
    found, expected = ([line["total_loss"] for line in lines] for lines in (parts, whole))
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("dtype", HALF.values())
def test_boxes_stay_where_they_are_whatever_the_format_of_the_map(
    dtype: torch.dtype, device: str
) -> None:
    random = torch.Generator().manual_seed(4)
    maps = torch.randn(1, 3, 160, 160, generator=random).to(device, dtype)
    corner = 900 + 300 * torch.rand(50, 2, generator=random)
    boxes = torch.cat([corner, corner + 16 + 32 * torch.rand(50, 2, generator=random)], dim=1)
    boxes = boxes.to(device)
    pooler = ROIPooler(output_size=7, strides=[8], sampling_ratio=0, aligned=True)
    with torch.autocast(device, dtype=dtype):
        found = pooler([maps], rois_of_images([boxes]))
    exact = roi_align(maps.float(), rois_of_images([boxes]), (7, 7), 1 / 8, 0, True)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, atol=1e-4, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_regions_and_their_gradient_are_a_cpus(sampling_ratio: int, device: str) -> None:
    random = torch.Generator().manual_seed(1)
    sizes = [(40, 52), (20, 26), (10, 13)]
    maps = [torch.randn(2, 4, *size, generator=random) for size in sizes]
    corner = 120 * torch.rand(2, 30, 2, generator=random)
    # up to twice the image, so that every map has regions
    boxes = list(torch.cat([corner, corner + 400 * torch.rand(2, 30, 2, generator=random)], dim=2))
    pooler = ROIPooler(
        output_size=7, strides=[4, 8, 16], sampling_ratio=sampling_ratio, aligned=True
    )
    results: list[list[Tensor]] = []
    for where in ("cpu", device):
        leaves = [m.to(where, copy=True).requires_grad_() for m in maps]
        pooled = pooler(leaves, rois_of_images([b.to(where) for b in boxes]))
        gradients = torch.autograd.grad(pooled.square().sum(), leaves)
        results.append([pooled.cpu(), *(gradient.cpu() for gradient in gradients)])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_a_trained_detector_finds_the_same_in_every_precision(
    name: str, device: str, painted: ScenesPaths
) -> None:
    # After 60 steps 226 detections of FPN boxes count; after 300 eight, too few for a share.
    steps = 60 if device == "cuda" else 20
    model, images = briefly_trained(name, painted, device=device, steps=steps)
    exact = detections(model, images, Precision("float32", device))
    shares = {p: agreement(detections(model, images, Precision(p, device)), exact) for p in HALF}
    # 8 bits move the scores of what is hardly learned
    assert shares["bfloat16"] > 0.8 and shares["float16"] > 0.9 or device == "cpu", shares
    on_cpu = detections(model.to("cpu"), images, Precision("float32", "cpu"))
    share = agreement(on_cpu, exact)
    assert share > 0.9, share


@pytest.mark.parametrize("name", ["FPN masks", "C4 masks"])
def test_evaluation_gives_the_rows_of_a_cpu(name: str, device: str, painted: ScenesPaths) -> None:
    model, _ = briefly_trained(name, painted, device=device, steps=5)
    cfg = load_config(*overrides_of(name))
    mapper, dataset = build_mapper(cfg, train=False), load_dataset(painted.test)
    found, expected = (
        predict(model.to(where), dataset, mapper, Precision("float32", where))
        for where in (device, "cpu")
    )
    assert {row["image_id"] for row in found} == {row["image_id"] for row in expected}
    assert all("segmentation" in row for row in found)
    best = [max((r["score"] for r in rows), default=0.0) for rows in (found, expected)]
    assert best[0] == pytest.approx(best[1], abs=0.01)


def trainable(
    name: str, precision: str, device: str, painted: ScenesPaths, *keys: str
) -> tuple[GeneralizedRCNN, list[Sample]]:
    """A detector in training with samples that are full, and two batches of one size."""
    # a sample of regions is full where there are proposals enough
    full = {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "8", "INPUT.RANDOM_FLIP": "none"}
    file, words = overrides_of(name, full)
    cfg = load_config(file, [*words, *keys])
    torch.manual_seed(0)
    model = build_detector(cfg).to(device).train()
    mapper = build_mapper(cfg, train=True)
    records = load_dataset(painted.train).records
    return model, [mapper(record, np.random.RandomState(0)) for record in records[:2]]


def losses_of(
    model: GeneralizedRCNN, samples: list[Sample], precision: Precision
) -> dict[str, Tensor]:
    with precision.autocast():
        losses = model([s.image for s in samples], [s.targets for s in samples])
    model.zero_grad()
    sum(losses.values()).backward()
    # nothing of a step may be left when the next is captured, its graph of gradients least of all
    return {name: loss.detach() for name, loss in losses.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_waits_for_the_device_three_times_at_most(
    name: str, precision: str, device: str, painted: ScenesPaths
) -> None:
    model, samples = trainable(name, precision, device, painted)
    own = Precision(precision, device)
    if (precision, device) == ("float16", "cpu"):
        pytest.skip("float16 takes minutes on a CPU")
    losses_of(model, samples, own)  # constants are made once
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            losses_of(model, samples, own)
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
    waits = [str(w.message) for w in caught if "synchroniz" in str(w.message)]
    waits = [w for w in waits if "prototype" not in w]
    assert len(waits) <= 3, waits


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", DETECTORS)
def test_a_graph_computes_what_its_kernels_compute(
    name: str, precision: str, device: str, painted: ScenesPaths
) -> None:
    if device == "cpu":
        pytest.skip("a CPU has no graphs")
    results: list[list[Tensor]] = []
    for captured in (False, True):
        model, samples = trainable(name, precision, device, painted)
        model.capture()
        assert model.captured is not None
        call = model.captured if captured else model.captured.launched
        found: list[Tensor] = []
        for step in range(5):  # the graph is there from the third on
            batch = model.batch([s.image for s in samples])[0] + 0.1 * step
            with Precision(precision, device).autocast():
                features, (logits, deltas) = call(batch)
            outputs = [*features.values(), *logits, *deltas]
            model.zero_grad()
            sum(o.float().square().mean() for o in outputs).backward()
            found = [o.detach().float().clone() for o in outputs]
            del features, logits, deltas, outputs
        assert len(model.captured.trunks) == captured
        # all gradients together: of some, 1x1 convolutions before a norm say, all is rounding
        trunk = [model.backbone, model.proposal_generator]
        gradients = [p.grad for m in trunk for p in m.parameters() if p.grad is not None]
        results.append([*found, torch.cat([g.flatten() for g in gradients]), *model.buffers()])
    limit = 0.01 if precision == "float32" else 0.05
    for one, other in zip(*results, strict=True):
        assert (one - other).float().norm() <= limit * other.float().norm() + 1e-6


@pytest.mark.detectron2
@pytest.mark.parametrize("amp", ["False", "True"])
@pytest.mark.parametrize("name", DETECTORS)
def test_the_detectron2_engine_trains_and_is_scored(
    name: str, amp: str, device: str, painted: ScenesPaths, tmp_path: Path
) -> None:
    pytest.importorskip("detectron2")
    from moco_det_tools.train_net import main

    output = tmp_path / "run"
    changes = {
        "MODEL.DEVICE": device,
        "SOLVER.AMP.ENABLED": amp,
        "DATASETS.TRAIN": repr((painted.train,)),
        "DATASETS.TEST": repr((painted.test,)),
        "OUTPUT_DIR": str(output),
    }
    file, words = overrides_of(name, changes)
    assert main(["--engine", "detectron2", "--config-file", str(file), *words]) == 0
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert len(losses) == 4 and all(math.isfinite(loss) for loss in losses)
    (row,) = (output / "results.jsonl").read_text().splitlines()
    assert json.loads(row)["engine"]["name"] == "detectron2"
