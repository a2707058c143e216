"""Damaged masks are told from whole ones, against a decoder that reads one character at a time."""

from __future__ import annotations

import numpy as np
import pycocotools.mask
import pytest

from moco_det.data import masks
from moco_det.data.masks import whole_masks


def pixels_of(counts: bytes) -> int | None:
    """The sum of a mask's runs; None where it is no mask."""
    runs: list[int] = []
    value = groups = 0
    for character in counts:
        code = character - 48
        if not 0 <= code < 64 or groups == 7:
            return None
        value |= (code & 31) << (5 * groups)
        groups += 1
        if code & 32:
            continue
        if code & 16:
            value -= 1 << (5 * groups)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = groups = 0
    whole = runs and groups == 0 and min(runs) >= 0
    return sum(runs) if whole else None


def made_masks(count: int) -> tuple[list[bytes], list[int]]:
    """Strings of pycocotools and their pixels: noise, rectangles, empty and full masks."""
    rng = np.random.default_rng(0)
    counts, pixels = [], []
    for _ in range(count):
        height, width = rng.integers(1, 60, 2)
        mask = rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 0.98, 1])
        if rng.random() < 0.3:
            mask[:] = False
            mask[height // 3 : height // 2 + 1, width // 4 : width // 2 + 1] = True
        counts.append(pycocotools.mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"])
        pixels.append(int(height * width))
    return counts, pixels


@pytest.mark.parametrize("chunk", [1, 1000, masks.CHUNK])
def test_every_mask_of_pycocotools_is_whole_and_of_no_other_size(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(masks, "CHUNK", chunk)
    counts, pixels = made_masks(300)
    assert whole_masks(counts, pixels).all()
    assert not whole_masks(counts, [size + 1 for size in pixels]).any()


def test_a_mask_of_two_billion_pixels_is_whole() -> None:
    size = 2**31 - 2**16
    (mask,) = pycocotools.mask.frPyObjects([{"size": [2**16, 2**15 - 1], "counts": [size]}], 1, 1)
    assert whole_masks([mask["counts"]], [size]).all()


def test_changed_cut_and_prolonged_masks_are_told_as_by_the_slow_decoder() -> None:
    rng = np.random.default_rng(1)
    counts, pixels = made_masks(1500)
    spoiled = []
    for mask in counts:
        changed = bytearray(mask)
        match rng.integers(3):
            case 0:
                changed = changed[: rng.integers(len(changed) + 1)]
            case 1:
                changed[rng.integers(len(changed))] = rng.integers(256)
            case 2:
                changed += bytes(rng.integers(48, 112, rng.integers(1, 12)).tolist())
        spoiled.append(bytes(changed))
    expected = [pixels_of(mask) == size for mask, size in zip(spoiled, pixels, strict=True)]
    assert whole_masks(spoiled, pixels).tolist() == expected
    assert 0 < sum(expected) < 200  # a run may be cut off that was empty


def test_a_negative_run_is_refused_though_the_sum_is_right() -> None:
    # 30 is "n0" (30 with more to follow, then 0), -5 is 27 = 16 + 11: "K"; "5" is 5
    assert whole_masks(["n05", "n0K"], [35, 25]).tolist() == [True, False]


@pytest.mark.parametrize("counts", ["", "\x01", "é", "Pb", "Pb1\x00", "oooooooooo1", b"\xff"])
def test_what_is_no_mask_is_not_whole(counts: str | bytes) -> None:
    assert not whole_masks(["Pb1", counts, "Pb1"], [1600, 1600, 1600])[1]
    assert whole_masks(["Pb1", counts, "Pb1"], [1600, 1600, 1600])[::2].all()


def test_no_masks_at_all() -> None:
    assert whole_masks([], []).shape == (0,)
