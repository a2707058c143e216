"""The detector over a test set: predictions as COCO result rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from moco_det.data import DetectionDataset, Record
from moco_det.errors import InputError
from moco_det.standalone import distributed
from moco_det.standalone.detector import GeneralizedRCNN, rescale
from moco_det.standalone.mapper import Mapper, Sample
from moco_det.standalone.masks import encode_mask, paste_masks
from moco_det.standalone.precision import Precision
from moco_det.standalone.roi_layers import Detections

BATCH = 8


@torch.no_grad()
def predict(
    model: GeneralizedRCNN,
    dataset: DetectionDataset,
    mapper: Mapper,
    precision: Precision,
    *,
    workers: int = 0,
    description: str = "testing",
) -> list[dict[str, Any]]:
    """Rows {image_id, category_id, bbox xywh, score, segmentation?} of every detection.

    The images are shared among the processes; every process gets all rows. The model's training
    mode is put back.
    """
    was_training = model.training
    model.eval()
    mine = dataset.records[distributed.rank() :: distributed.world_size()]
    rows: list[dict[str, Any]] = []
    quiet = distributed.rank() != 0
    with tqdm(total=len(mine), desc=description, unit="image", disable=quiet, mininterval=1) as bar:
        for samples in same_size_batches(read_samples(mine, mapper, workers)):
            with precision.autocast():
                found = model([sample.image for sample in samples])
            for sample, detections in zip(samples, found, strict=True):
                rows.extend(to_rows(sample, detections, dataset.category_ids))
            bar.update(len(samples))
    model.train(was_training)
    return [row for part in distributed.gather(rows) for row in part]


class ScoredSamples(Dataset[Sample | InputError]):
    """Records, each transformed; an error is handed on as a value, so that it keeps its line."""

    def __init__(self, records: Sequence[Record], mapper: Mapper) -> None:
        self.records = records
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample | InputError:
        try:
            return self.mapper(self.records[index])
        except InputError as error:
            return error


def read_samples(records: Sequence[Record], mapper: Mapper, workers: int) -> Iterator[Sample]:
    """Samples in order, read by worker processes where there are batches enough for them."""
    for found in DataLoader(
        ScoredSamples(records, mapper),
        batch_size=None,
        num_workers=min(workers, len(records) // BATCH),
        generator=torch.Generator(),  # else the workers' seeds are drawn from the run's own
    ):
        if isinstance(found, InputError):
            raise found
        yield found


def same_size_batches(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Samples in order, neighbours of the same size together: no padding changes a result."""
    batch: list[Sample] = []
    for sample in samples:
        if batch and (len(batch) == BATCH or sample.image.shape != batch[0].image.shape):
            yield batch
            batch = []
        batch.append(sample)
    if batch:
        yield batch


def to_rows(sample: Sample, found: Detections, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections of one input as rows in the original image's pixels."""
    size = (int(sample.image.shape[-2]), int(sample.image.shape[-1]))
    found = rescale(found, size, sample.height, sample.width)
    boxes = found.boxes.float().cpu()
    rows: list[dict[str, Any]] = [
        {
            "image_id": sample.image_id,
            "category_id": category_ids[category],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        for (x0, y0, x1, y1), score, category in zip(
            boxes.tolist(), found.scores.tolist(), found.classes.tolist(), strict=True
        )
    ]
    if found.masks is not None:
        masks = paste_masks(found.masks.float().cpu(), boxes, sample.height, sample.width)
        for row, mask in zip(rows, masks, strict=True):
            row["segmentation"] = encode_mask(mask)
    return rows
