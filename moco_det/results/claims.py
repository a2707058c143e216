"""Claims about numbers that were declared before they were measured.

moco.AP > random.AP                                  a difference
moco.AP at 6x - sup.AP at 6x > moco.AP at 1x - sup.AP at 1x    a difference of differences
moco.knn ~ end_to_end.knn                            equal, but for what is of no interest
knn rises over moco_k128, moco_k512, moco_k2048      a trend
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from moco_det.foundation.errors import InputError

GREATER, LESS, EQUAL = ">", "<", "~"
_WORD = r"[A-Za-z0-9][A-Za-z0-9_+-]*"
_TERM = re.compile(rf"({_WORD})\.({_WORD}(?:\.{_WORD})?)(?: at ({_WORD}))?")
_TREND = re.compile(
    rf"({_WORD}(?:\.{_WORD})?) (rises|falls) over ({_WORD}(?:(?:, ?| ){_WORD})*?)(?: at ({_WORD}))?"
)
_WAYS = (
    '"moco.AP > random.AP", "moco.knn ~ end_to_end.knn", "moco.AP at 6x - sup.AP at 6x > ..." or '
    '"knn rises over k128, k512, k2048"'
)


class Quantity(NamedTuple):
    """What is measured of an encoder: an AP in a setting, a probe's accuracy, a number of its log.

    `setting` is empty where the claim names none.
    """

    encoder: str
    metric: str
    setting: str

    def __str__(self) -> str:
        return f"{self.encoder}.{self.metric}" + (f" at {self.setting}" if self.setting else "")


class Term(NamedTuple):
    """A quantity and what its mean is multiplied by."""

    factor: float
    quantity: Quantity


@dataclass(frozen=True)
class Claim:
    """That the sum of the terms is above zero, below zero, or near it (`relation`)."""

    text: str
    terms: tuple[Term, ...]
    relation: str


def read_claim(text: str) -> Claim:
    """A claim as it is written in a study; InputError where it is none."""
    line = " ".join(text.split())
    if trend := _TREND.fullmatch(line):
        metric, way, names, setting = trend.groups()
        encoders = re.split(r", ?| ", names)
        if len(encoders) < 2 or len(set(encoders)) < len(encoders):
            raise InputError(f"the claim {line!r}: a trend is over two encoders or more, each once")
        quantities = [Quantity(encoder, metric, setting or "") for encoder in encoders]
        slope = [Term(*one) for one in zip(_slope(len(encoders)), quantities, strict=True)]
        return Claim(line, tuple(slope), GREATER if way == "rises" else LESS)
    sides = re.split(r" ([><~]) ", line)
    if len(sides) != 3:
        raise InputError(f"the claim {line!r} is none that can be judged: write {_WAYS}")
    left, relation, right = sides
    terms = [*_side(left, line, 1.0), *_side(right, line, -1.0)]
    return Claim(line, tuple(terms), relation)


def _side(text: str, claim: str, sign: float) -> Sequence[Term]:
    parts = re.split(r" ([+-]) ", text)
    terms = []
    for number, part in enumerate(parts[::2]):
        found = _TERM.fullmatch(part)
        if found is None:
            raise InputError(
                f"the claim {claim!r}: {part!r} is no quantity; write ENCODER.METRIC or "
                "ENCODER.METRIC at SETTING"
            )
        minus = number > 0 and parts[2 * number - 1] == "-"
        encoder, metric, setting = found.groups()
        terms.append(Term(-sign if minus else sign, Quantity(encoder, metric, setting or "")))
    return terms


def _slope(count: int) -> list[float]:
    """The factors whose sum is the rise, from first to last, of the line fitted through means."""
    places = [index - (count - 1) / 2 for index in range(count)]
    squares = sum(place**2 for place in places)
    return [place * (count - 1) / squares for place in places]


@dataclass(frozen=True)
class Hypothesis:
    """A claim, the smallest effect that is of interest, and what was published of it.

    `paired` takes its encoders seed by seed.
    """

    claim: Claim
    least: float
    published: str = ""
    paired: bool = False
