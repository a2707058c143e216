"""Compressed run-length masks that came in a file, checked without being unpacked.

pycocotools takes any string: what is none of its masks gives it areas and overlaps without meaning,
and pixels that nobody has written.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moco_det.scoring.arrays import Bools, Ints

# Characters looked at in one go: their arrays stay in the cache, which makes it twice as fast.
CHUNK = 2**16


def whole_masks(counts: Sequence[str | bytes], pixels: Sequence[int]) -> Bools:
    """Whether each string is a mask of so many pixels: its runs, none negative, add up to them.

    COCO's coding: a run's length is written in groups of five bits, lowest first, one a character
    from "0" on; 32 marks that more follow, 16 in the last group a negative number. From the
    fourth run on it is the difference to the run before the last that is written.
    """
    coded = [c.encode("utf-8", "replace") if isinstance(c, str) else c for c in counts]
    size = np.array([len(c) for c in coded], dtype=np.int64)
    sums = np.asarray(pixels, dtype=np.int64)
    good = np.zeros(len(coded), dtype=bool)
    low = 0
    ends = np.cumsum(size)
    while low < len(coded):
        start = ends[low] - size[low]
        high = max(low + 1, int(np.searchsorted(ends, start + CHUNK, side="right")))
        text = np.frombuffer(b"".join(coded[low:high]), dtype=np.uint8)
        good[low:high] = _whole(text, size[low:high], sums[low:high])
        low = high
    return good


def _whole(text: npt.NDArray[np.uint8], size: Ints, pixels: Ints) -> Bools:
    """`whole_masks` of masks whose characters (C,) follow each other, `size` (N,) of each."""
    code = text.astype(np.int64) - 48
    end = np.cumsum(size)
    good = size > 0
    # every character known, the last of a mask the last of its number
    good[good] = code[end[good] - 1] < 32
    alien = np.flatnonzero((code < 0) | (code > 63))
    good[np.searchsorted(end, alien, side="right")] = False
    code, size, pixels = code[np.repeat(good, size)], size[good], pixels[good]
    if not len(size):
        return good

    last = np.flatnonzero(code < 32)  # of each number
    first = np.concatenate(([0], last[:-1] + 1))
    group = np.arange(len(code)) - np.repeat(first, last - first + 1)
    # a run has 32 bits, seven groups; with more the shift would leave its 64
    long = np.flatnonzero(last - first >= 7)
    value = np.add.reduceat((code & 31) << (5 * np.minimum(group, 7)), first)
    value -= ((code[last] >> 4) & 1) << (5 * np.minimum(last - first + 1, 8))

    count = np.diff(np.searchsorted(last, np.cumsum(size) - 1, side="right"), prepend=0)
    opens = np.cumsum(count) - count
    place = np.arange(len(value)) - np.repeat(opens, count)
    owner = np.repeat(np.arange(len(size)), count)
    # Runs of each parity are sums of the differences; the first run stands apart.
    value[opens], apart = 0, value[opens]
    runs = np.zeros(len(value), dtype=np.int64)
    for parity in (0, 1):
        mine = np.flatnonzero(place % 2 == parity)
        total = np.cumsum(value[mine])
        before = np.searchsorted(mine, opens, side="left")
        base = np.concatenate(([0], total))[before]
        runs[mine] = total - base[owner[mine]]
    runs[opens] = apart
    fits = np.add.reduceat(runs, opens) == pixels
    fits[owner[runs < 0]] = False
    fits[owner[long]] = False
    good[good] = fits
    return good
