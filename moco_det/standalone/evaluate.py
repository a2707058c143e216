"""The detector over a test set: predictions as COCO result rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from moco_det.data import DetectionDataset, Record
from moco_det.foundation import collectives, stopping
from moco_det.foundation.errors import InputError
from moco_det.foundation.precision import Precision
from moco_det.standalone.boxes import nonempty
from moco_det.standalone.detector import GeneralizedRCNN
from moco_det.standalone.mapper import Mapper, Sample
from moco_det.standalone.pasting import encode_masks
from moco_det.standalone.roi_layers import ImageDetections

BATCH = 8
AHEAD = 64  # samples that may wait for others of their size
PREFETCH = 4  # samples that each worker holds ready

Rows = list[dict[str, Any]]
Batch = list[tuple[int, Sample]]  # with their numbers in the order read
T = TypeVar("T")


@torch.no_grad()
def predict(
    model: GeneralizedRCNN,
    dataset: DetectionDataset,
    mapper: Mapper,
    precision: Precision,
    *,
    workers: int = 0,
    description: str = "testing",
) -> Rows:
    """Rows {image_id, category_id, bbox xywh, score, segmentation?} of every detection.

    The images are shared among the processes; every process gets all rows. The model's training
    mode is put back. Stopped, on all of them, where one is asked to stop (`stopping.deferred`).
    """
    was_training = model.training
    model.eval()
    mine = dataset.records[collectives.rank() :: collectives.world_size()]
    rows: list[Rows] = [[] for _ in mine]
    step = model.backbone.size_divisibility
    batches = same_size_batches(read_samples(mine, mapper, workers), step)
    quiet = not (description and collectives.is_main())
    with (
        tqdm(total=len(mine), desc=description, unit="image", disable=quiet, mininterval=1) as bar,
        ThreadPoolExecutor() as pool,
    ):
        side = SideStream(pool, precision.device)

        def keep(batch: Batch, result: Callable[[], list[Rows]]) -> None:
            for (number, _), part in zip(batch, result(), strict=True):
                rows[number] = part
            bar.update(len(batch))

        before: tuple[Batch, Callable[[], list[Rows]]] = ([], list)
        stop = 0
        for batch in side.ahead(batches):
            if stop := stopping.asked():
                break
            samples = [sample for _, sample in batch]
            with precision.autocast():
                found = model([sample.image for sample in samples])
            now = batch, side.start(to_rows, samples, found, dataset.category_ids)
            keep(*before)
            before = now
        keep(*before)
    model.train(was_training)
    shares = collectives.gather_objects((stop, rows))
    if stop := max(number for number, _ in shares):
        raise stopping.Stopped(stop)
    return [row for _, part in shares for one in part for row in one]


class SideStream:
    """Starts functions in threads, on a stream of its own, while the model runs on a GPU.

    A CPU has its hands full with the model: there they run when their result is asked for.
    """

    def __init__(self, pool: Executor, device: str) -> None:
        self.pool = pool
        self.stream = torch.cuda.Stream() if device == "cuda" else None

    def start(self, function: Callable[..., T], *arguments: Any) -> Callable[[], T]:
        """What waits for the result; the function sees what the model has been given to do."""
        stream = self.stream
        if stream is None:
            return partial(function, *arguments)
        ready = torch.cuda.current_stream().record_event()

        def run() -> T:
            with torch.cuda.stream(stream):
                stream.wait_event(ready)
                return function(*arguments)

        return self.pool.submit(run).result

    def ahead(self, items: Iterator[T]) -> Iterator[T]:
        """The items, the next of which is made while one is used."""
        coming = self.start(next, items, None)
        while (item := coming()) is not None:
            coming = self.start(next, items, None)
            yield item


def read_samples(records: Sequence[Record], mapper: Mapper, workers: int) -> Iterator[Sample]:
    """Samples in order, read by worker processes where there are batches enough for them.

    The workers are started by the thread that calls this. That must not be one of a pool: a child
    of it would try to join itself at its end, and end with an error.
    """
    workers = min(workers, len(records) // BATCH)
    loader: DataLoader[Any] = DataLoader(
        records,  # type: ignore[arg-type]
        batch_size=None,
        collate_fn=partial(sample_or_error, mapper),
        num_workers=workers,
        worker_init_fn=stopping.ignore_in_worker,
        prefetch_factor=PREFETCH if workers else None,
        generator=torch.Generator(),  # else the workers' seeds are drawn from the run's own
    )
    return map(partial(checked, copy=workers > 0), iter(loader))


def sample_or_error(mapper: Mapper, record: Record) -> Sample | InputError:
    """An error is handed on as a value, so that it keeps its line."""
    try:
        return mapper(record)
    except InputError as error:
        return error


def checked(found: Sample | InputError, *, copy: bool) -> Sample:
    """A sample, copied where it lies in shared memory; the error in its place is raised."""
    if isinstance(found, InputError):
        raise InputError(*found.args)  # not one that this frame holds: it would outlive its handler
    if copy:  # it may wait for long, and a container has little shared memory
        found.image = found.image.clone()
    return found


def same_size_batches(samples: Iterable[Sample], step: int) -> Iterator[Batch]:
    """Samples of one size, rounded up to ``step`` as the model does: no padding changes a result.

    Up to AHEAD of them wait for their like; then those of the longest waiting one's size are
    given as they are.
    """
    waiting: dict[tuple[int, ...], Batch] = {}
    for number, sample in enumerate(samples):
        size = tuple(-(-side // step) for side in sample.image.shape[-2:])
        batch = waiting.setdefault(size, [])
        batch.append((number, sample))
        if len(batch) == BATCH:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) == AHEAD:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def to_rows(
    samples: Sequence[Sample], found: Sequence[ImageDetections], category_ids: Sequence[int]
) -> list[Rows]:
    """ImageDetections of each input as rows in its original image's pixels.

    Boxes that lie outside the image are dropped.
    """
    counts = torch.tensor([len(one.boxes) for one in found])
    columns = [(one.boxes, one.scores[:, None], one.classes[:, None]) for one in found]
    numbers = torch.cat([torch.cat(column, dim=1) for column in columns]).cpu()  # one transfer
    sizes = torch.tensor([[sample.height, sample.width] for sample in samples])
    inputs = torch.tensor([sample.image.shape[-2:] for sample in samples])
    image = torch.arange(len(samples)).repeat_interleave(counts)
    scale = (sizes.to(numbers.dtype) / inputs).flip(1).repeat(1, 2)[image]
    limit = sizes.flip(1).repeat(1, 2)[image]
    boxes = torch.minimum((numbers[:, :4] * scale).clamp(min=0), limit)
    kept = nonempty(boxes).nonzero()[:, 0]
    boxes, image = boxes[kept].float(), image[kept]
    masks = [one.masks for one in found if one.masks is not None]
    texts: list[str] = []
    if masks:
        chosen = kept.to(masks[0].device, non_blocking=True)
        texts = encode_masks(torch.cat(masks)[chosen], boxes, sizes[image])
    rows: list[Rows] = [[] for _ in samples]
    columns_of_rows = image.tolist(), boxes.tolist(), numbers[kept, 4:].tolist()
    for index, (number, box, (score, category)) in enumerate(zip(*columns_of_rows, strict=True)):
        x0, y0, x1, y1 = box
        sample = samples[number]
        row: dict[str, Any] = {
            "image_id": sample.image_id,
            "category_id": category_ids[int(category)],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "score": score,
        }
        if masks:
            row["segmentation"] = {"size": [sample.height, sample.width], "counts": texts[index]}
        rows[number].append(row)
    return rows
