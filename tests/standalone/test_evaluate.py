"""ImageDetections to rows, and precision by device."""

from __future__ import annotations

import gc
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import moco_det.foundation.precision as precision
from moco_det.data import DetectionDataset, Record, load_dataset
from moco_det.data.scenes import ScenesPaths
from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import Precision, choose_precision
from moco_det.standalone import evaluate
from moco_det.standalone.build import build_mapper
from moco_det.standalone.evaluate import AHEAD, BATCH, predict, same_size_batches, to_rows
from moco_det.standalone.mapper import Sample
from moco_det.standalone.roi_layers import ImageDetections
from tests.standalone.tiny import tiny_config
from tests.standalone.trained import agreement, briefly_trained, detections

FLOAT = Precision("float32", "cpu")


def test_rows_by_hand() -> None:
    sample = Sample(torch.zeros(3, 20, 40), 10, 20, 77)  # the network saw it twice as large
    found = ImageDetections(
        boxes=torch.tensor([[4.0, 4, 12, 8], [50, 0, 60, 5]]),
        scores=torch.tensor([0.75, 0.5]),
        classes=torch.tensor([1, 0]),
        masks=torch.ones(2, 4, 4),
    )
    ((row,),) = to_rows([sample], [found], [30, 60])  # the second lies outside
    segmentation = row.pop("segmentation")
    assert row == {"image_id": 77, "category_id": 60, "bbox": [2, 2, 4, 2], "score": 0.75}
    assert segmentation["size"] == [10, 20]
    assert coco_mask.area(segmentation) == 8
    none = torch.zeros(0, dtype=torch.int64)
    nothing = ImageDetections(torch.zeros(0, 4), torch.zeros(0), none, torch.zeros(0, 4, 4))
    assert to_rows([sample], [nothing], [30, 60]) == [[]]
    small = Sample(torch.zeros(3, 20, 40), 20, 40, 78)
    assert to_rows([sample, sample, small], [found, nothing, found], [30, 60]) == [
        *to_rows([sample], [found], [30, 60]),
        [],
        *to_rows([small], [found], [30, 60]),
    ]


def test_detections_are_rescaled_to_the_original_image() -> None:
    sample = Sample(torch.zeros(3, 60, 100), 30, 200, 77)  # x doubles, y halves
    found = ImageDetections(
        boxes=torch.tensor([[10.0, 10, 30, 20], [90, 0, 101, 10], [99.9, 60, 100, 60]]),
        scores=torch.tensor([0.75, 0.5, 0.25]),
        classes=torch.tensor([1, 2, 0]),
        masks=torch.stack([torch.zeros(4, 4), torch.ones(4, 4), torch.ones(4, 4)]),
    )
    (rows,) = to_rows([sample], [found], [0, 1, 2])
    # the second is cut at the right edge, the third has no height
    assert [row["bbox"] for row in rows] == [[20, 5, 40, 5], [180, 0, 20, 5]]
    assert [row["category_id"] for row in rows] == [1, 2]
    assert [coco_mask.area(row["segmentation"]) for row in rows] == [0, 100]


class Counted(TorchDispatchMode):
    """Counts every operation on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_a_batch_takes_as_many_operations_whatever_it_holds() -> None:
    sample = Sample(torch.zeros(3, 20, 40), 10, 20, 77)
    counts = []
    for number in (5, 50):
        found = ImageDetections(
            torch.tensor([[4.0, 4, 12, 8]]).repeat(number, 1),
            torch.ones(number),
            torch.zeros(number, dtype=torch.int64),
            torch.ones(number, 4, 4),
        )
        with Counted() as counted:
            to_rows([sample] * 3, [found] * 3, [30])
        counts.append(counted.count)
    assert counts[0] == counts[1] > 0


class Echo(nn.Module):
    """Finds one object in each image, as large as the image."""

    backbone = SimpleNamespace(size_divisibility=1)

    def forward(self, images: list[Tensor]) -> list[ImageDetections]:
        assert not self.training and not torch.is_grad_enabled()
        return [
            ImageDetections(
                torch.tensor([[0.0, 0, i.shape[2], i.shape[1]]]),
                torch.ones(1),
                torch.zeros(1, dtype=torch.int64),
            )
            for i in images
        ]


def sizes(*shapes: tuple[int, int]) -> DetectionDataset:
    records = tuple(Record(i, f"{i}.jpg", h, w) for i, (h, w) in enumerate(shapes))
    return DetectionDataset("sizes", "", records, ("thing",), (5,))


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads beside the model, as a GPU has them."""

    def start(self: evaluate.SideStream, function: Any, *arguments: Any) -> Any:
        return self.pool.submit(function, *arguments).result

    monkeypatch.setattr(evaluate.SideStream, "start", start)


@pytest.mark.usefixtures("threads")
def test_workers_beside_threads_end_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # where torch watches over its workers, one that ends with an error ends the evaluation
    started: list[BaseProcess] = []
    start = BaseProcess.start
    monkeypatch.setattr(BaseProcess, "start", lambda p: (started.append(p), start(p))[1])
    dataset = sizes(*[(20, 30)] * (2 * BATCH))
    rows = predict(Echo(), dataset, Blank(), FLOAT, workers=2)  # type: ignore[arg-type]
    assert len(rows) == 2 * BATCH
    assert [process.exitcode for process in started] == [0, 0]


def test_workers_find_the_same_rows_and_say_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    shapes = [(20, 30)] * BATCH + [(30, 20)] * BATCH + [(20, 30)] * 3
    records = []
    for i, (h, w) in enumerate(shapes):
        Image.new("RGB", (w, h), (i, i, i)).save(tmp_path / f"{i}.png")
        records.append(Record(i, str(tmp_path / f"{i}.png"), h, w))
    dataset = DetectionDataset("sizes", "", tuple(records), ("thing",), (5,))
    mapper = build_mapper(tiny_config(), train=False)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone, helped = (predict(Echo(), dataset, mapper, FLOAT, workers=w) for w in (0, 2))  # type: ignore[arg-type]
    assert helped == alone and [row["image_id"] for row in alone] == list(range(len(shapes)))
    assert torch.equal(torch.get_rng_state(), state)
    Path(records[3].file_name).write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        predict(Echo(), dataset, mapper, FLOAT, workers=2)  # type: ignore[arg-type]
    assert "3.png does not open" in str(caught.value) and "\n" not in str(caught.value)


def test_workers_end_with_the_error_that_ends_their_evaluation(tmp_path: Path) -> None:
    shapes = [Record(i, str(tmp_path / "none.png"), 20, 30) for i in range(2 * BATCH)]
    dataset = DetectionDataset("none", "", tuple(shapes), ("thing",), (5,))
    mapper = build_mapper(tiny_config(), train=False)
    before = set(active_children())
    gc.disable()  # what is left for it holds the workers
    try:
        try:
            predict(Echo(), dataset, mapper, FLOAT, workers=2)  # type: ignore[arg-type]
        except InputError:
            pass
        else:
            raise AssertionError("no error")
        assert set(active_children()) == before
    finally:
        gc.enable()


class Blank:
    """A mapper that needs no files."""

    def __call__(self, record: Record) -> Sample:
        image = torch.zeros(3, record.height, record.width)
        return Sample(image, record.height, record.width, record.image_id)


def test_every_image_is_scored_in_order_and_the_mode_is_put_back() -> None:
    dataset = sizes((10, 20), (10, 20), (20, 10), (10, 20))
    model = Echo().train()
    rows = predict(model, dataset, Blank(), FLOAT)  # type: ignore[arg-type]
    assert [row["image_id"] for row in rows] == [0, 1, 2, 3]
    assert rows[2]["bbox"] == [0, 0, 10, 20] and rows[2]["category_id"] == 5
    assert model.training


def test_an_empty_test_set_has_no_rows() -> None:
    assert predict(Echo(), sizes(), Blank(), FLOAT) == []  # type: ignore[arg-type]


def numbers(step: int, *shapes: tuple[int, int]) -> list[list[int]]:
    """Which samples of these shapes share a batch."""
    samples = map(Blank(), sizes(*shapes).records)
    return [[number for number, _ in batch] for batch in same_size_batches(samples, step)]


def test_samples_of_one_size_share_a_batch() -> None:
    assert numbers(1, (1, 2), (2, 1), (1, 2), (2, 1), (1, 1)) == [[0, 2], [1, 3], [4]]
    full = list(range(1, BATCH + 1))
    assert numbers(1, (1, 2), *[(3, 3)] * (BATCH + 1)) == [full, [0], [BATCH + 1]]


def test_a_size_is_what_the_model_pads_to() -> None:
    assert numbers(32, (30, 33), (32, 64), (33, 33), (1, 40)) == [[0, 1, 3], [2]]


def test_the_longest_waiting_goes_first_where_too_many_wait() -> None:
    found = numbers(1, *[(1, i + 1) for i in range(AHEAD)], (1, 2), (1, 1))
    assert found[0] == [0] and found[1] == [1, AHEAD]
    assert sorted(sum(found, [])) == list(range(AHEAD + 2))


def test_threads_beside_the_model_change_nothing(
    painted: ScenesPaths, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    model, _ = briefly_trained("FPN masks", painted, device="cpu", steps=5)
    mapper, dataset = build_mapper(tiny_config(), train=False), load_dataset(painted.test)
    monkeypatch.setattr(evaluate, "BATCH", 1)
    expected = predict(model, dataset, mapper, FLOAT)
    assert len(expected) > len(dataset.records)
    request.getfixturevalue("threads")
    assert predict(model, dataset, mapper, FLOAT) == expected


@pytest.mark.parametrize(("fast", "name"), [(True, "bfloat16"), (False, "float32")])
def test_mixed_precision_on_a_cpu_where_it_is_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool, name: str
) -> None:
    monkeypatch.setattr(precision, "bfloat16_is_fast", lambda _: fast)
    chosen = choose_precision(amp=True, device="cpu")
    assert chosen.name == name and (chosen.note == "") == fast
    assert choose_precision(amp=False, device="cpu").name == "float32"
    with chosen.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if fast else torch.float32)


def test_only_half_precision_needs_a_loss_scale() -> None:
    assert Precision("float16", "cuda").needs_scaler
    assert not Precision("bfloat16", "cuda").needs_scaler and not FLOAT.needs_scaler


def test_a_trained_detector_finds_in_bfloat16_what_it_finds_in_float32(
    painted: ScenesPaths,
) -> None:
    model, pictures = briefly_trained("FPN masks", painted, device="cpu", steps=60)
    exact = detections(model, pictures, FLOAT)
    assert agreement(detections(model, pictures, Precision("bfloat16", "cpu")), exact) > 0.9
