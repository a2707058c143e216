"""The stream of batches depends on the seed and a batch's number, and on nothing else."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_det.data import Annotation, Record
from moco_det.standalone import loader
from moco_det.standalone.loader import BatchStream, TrainingSamples, training_loader, usable
from moco_det.standalone.mapper import Mapper, Sample

# every third image is higher than wide; a square counts as not wide
RECORDS = [Record(i, f"{i}.jpg", *((30, 20) if i % 3 == 0 else (20, 30))) for i in range(10)]

Batches = list[list[tuple[int, int]]]


def take(
    count: int,
    *,
    seed: int = 0,
    start: int = 0,
    group: bool = True,
    size: int = 2,
    streams: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Batches:
    stream = BatchStream(
        RECORDS,
        batch_size=size,
        seed=seed,
        start=start,
        group_by_aspect=group,
        streams=streams,
        rank=rank,
        world_size=world,
    )
    return list(itertools.islice(stream, count))


def test_the_same_seed_gives_the_same_batches_and_another_others() -> None:
    assert take(20) == take(20) != take(20, seed=1)


def test_starting_at_a_batch_is_skipping_those_before_it() -> None:
    for start in (1, 7, 13):
        assert take(10, start=start) == take(10 + start)[start:]


def test_every_round_holds_every_image_once_and_rounds_differ() -> None:
    places = sorted(place for batch in take(50, group=False) for place in batch)
    rounds = [[i for _, i in places[k : k + 10]] for k in range(0, 100, 10)]
    assert [position for position, _ in places] == list(range(100))
    assert all(sorted(r) == list(range(10)) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 10


def test_a_batch_holds_images_of_one_shape() -> None:
    grouped = take(60)
    shapes = [{i % 3 == 0 for _, i in batch} for batch in grouped]
    assert all(len(shape) == 1 for shape in shapes)
    assert {True} in shapes and {False} in shapes
    assert any(len({i % 3 == 0 for _, i in batch}) == 2 for batch in take(60, group=False))


def test_a_square_goes_with_the_high_ones() -> None:
    records = [Record(0, "a", 10, 10), Record(1, "b", 20, 10), Record(2, "c", 10, 20)]
    stream = BatchStream(records, batch_size=4, seed=0)
    batches = list(itertools.islice(stream, 12))
    assert {frozenset(i for _, i in batch) for batch in batches} == {
        frozenset({0, 1}),
        frozenset({2}),
    }


def test_every_stream_gives_its_part_of_a_batch_from_positions_of_its_own() -> None:
    for batch in take(60, size=12, streams=3):
        for stream, part in enumerate((batch[:4], batch[4:8], batch[8:])):
            assert {position % 3 for position, _ in part} == {stream}
            assert len({i % 3 == 0 for _, i in part}) == 1  # of one shape


@pytest.mark.parametrize("streams", [4, 1, 3])
@pytest.mark.parametrize("group", [True, False])
def test_any_number_of_processes_goes_on_with_the_batches_of_those_that_began(
    group: bool, streams: int
) -> None:
    def go_on(start: int, stop: int, world: int) -> Batches:
        ranks = [
            take(
                stop - start,
                start=start,
                size=12,
                group=group,
                streams=streams,
                rank=rank,
                world=world,
            )
            for rank in range(world)
        ]
        return [sum(shares, []) for shares in zip(*ranks, strict=True)]

    whole, parts = go_on(0, 60, streams), list[list[tuple[int, int]]]()
    for world, stop in ((4, 13), (2, 26), (1, 39), (12, 47), (4, 60)):
        parts += go_on(len(parts), stop, world)
    assert parts == whole
    assert len({place for batch in whole for place in batch}) == 60 * 12


def write_records(folder: Path) -> list[Record]:
    records = []
    for i in range(5):
        file = folder / f"{i}.png"
        pixels = np.random.RandomState(i).randint(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
        box = Annotation((3.0, 2.0, 9.0, 8.0), 0)
        records.append(Record(i, str(file), 20, 30, (box,)))
    return records


MAPPER = Mapper(
    train=True,
    min_sizes=[16, 40],
    max_size=100,
    sampling="range",
    flip="horizontal",
    image_format="RGB",
    with_masks=False,
    mask_format="polygon",
)


def same(one: Sample, two: Sample) -> bool:
    assert one.targets is not None and two.targets is not None
    return (
        one.image_id == two.image_id
        and one.image.equal(two.image)
        and one.targets.boxes.equal(two.targets.boxes)
    )


def test_a_sample_depends_on_its_place_only(tmp_path: Path) -> None:
    records = write_records(tmp_path)
    forwards = TrainingSamples(records, MAPPER, seed=4)
    backwards = TrainingSamples(records, MAPPER, seed=4)
    places = [(position, 1) for position in range(8)]
    one = [forwards[place] for place in places]
    two = [backwards[place] for place in reversed(places)][::-1]
    assert all(same(a, b) for a, b in zip(one, two, strict=True))
    assert len({sample.image.shape for sample in one}) > 1  # the place decides the size
    other = TrainingSamples(records, MAPPER, seed=5)
    assert not all(same(other[place], sample) for place, sample in zip(places, one, strict=True))


def test_a_kept_image_is_read_once_and_stays_as_it_was(tmp_path: Path) -> None:
    records = write_records(tmp_path)
    kept, read = (TrainingSamples(records, MAPPER, seed=4, keep=k) for k in (True, False))
    places = [(position, position % 2) for position in range(8)]
    expected = [read[place] for place in places]
    first = [kept[place] for place in places[:2]]
    for record in records:
        Path(record.file_name).unlink()
    assert all(same(kept[place], one) for place, one in zip(places, expected, strict=True))
    assert all(same(a, b) for a, b in zip(first, expected[:2], strict=True))
    assert set(kept.images) == {0, 1} and not read.images


def test_images_are_kept_where_all_workers_have_room_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = write_records(tmp_path)  # five of 20 x 30 pixels
    monkeypatch.setattr(loader, "KEPT_BYTES", 2 * 5 * 20 * 30 * 3)
    for workers, expected in ((0, True), (1, True), (2, True), (3, False)):
        batches = training_loader(
            records, MAPPER, BatchStream(records, batch_size=2, seed=0), workers=workers
        )
        assert isinstance(batches.dataset, TrainingSamples)
        assert batches.dataset.keep == expected


def test_workers_change_nothing(tmp_path: Path) -> None:
    records = write_records(tmp_path)

    def batches(workers: int) -> list[list[Sample]]:
        stream = BatchStream(records, batch_size=2, seed=9, start=3)
        found = training_loader(records, MAPPER, stream, workers=workers)
        return list(itertools.islice(found, 4))

    alone, helped = batches(0), batches(2)
    for one, two in zip(alone, helped, strict=True):
        assert len(one) == len(two) == 2
        assert all(same(a, b) for a, b in zip(one, two, strict=True))


def test_images_with_nothing_but_crowds_are_not_trained_on() -> None:
    crowd, thing = Annotation((0, 0, 1, 1), 0, iscrowd=True), Annotation((0, 0, 1, 1), 0)
    records = [
        Record(0, "a", 1, 1),
        Record(1, "b", 1, 1, (crowd,)),
        Record(2, "c", 1, 1, (crowd, thing)),
    ]
    assert [r.image_id for r in usable(records)] == [2]
    assert usable([]) == []
