"""Claims as they are written, and what is none."""

from __future__ import annotations

import pytest

from moco_det.foundation.errors import InputError
from moco_det.results.claims import Quantity, read_claim


def terms(text: str) -> dict[str, float]:
    claim = read_claim(text)
    return {str(term.quantity): round(term.factor, 6) for term in claim.terms}


def test_a_difference_of_differences_keeps_every_sign() -> None:
    text = "moco.AP at 6x - sup.AP at 6x > moco.AP at 1x - sup.AP at 1x"
    wanted = {"moco.AP at 6x": 1, "sup.AP at 6x": -1, "moco.AP at 1x": -1, "sup.AP at 1x": 1}
    assert terms(text) == wanted
    assert read_claim(text).relation == ">"


@pytest.mark.parametrize(
    ("names", "factors"),
    [("a, b", (-1, 1)), ("a b c", (-1, 0, 1)), ("a, b, c, d", (-0.9, -0.3, 0.3, 0.9))],
)
def test_a_trend_is_the_rise_of_the_fitted_line(names: str, factors: tuple[float, ...]) -> None:
    found = terms(f"knn rises over {names}")
    assert tuple(found.values()) == factors
    means = [3.0 + 2 * i for i in range(len(factors))]  # a line: it rises by its ends' difference
    rise = sum(factor * mean for factor, mean in zip(factors, means, strict=True))
    assert rise == pytest.approx(means[-1] - means[0])


def test_names_of_metrics_may_have_a_dot_and_of_encoders_signs() -> None:
    claim = read_claim("  moco-v2_k512.segm.AP50   at  six+x ~ b.segm.AP50 at six+x ")
    assert claim.terms[0].quantity == Quantity("moco-v2_k512", "segm.AP50", "six+x")
    assert claim.relation == "~"


@pytest.mark.parametrize(
    "text",
    [
        *("", "moco > random", "moco.AP", "a.x > b.x > c.x", "a.x >> b.x", "a.x > b.x at"),
        *("knn rises over a", "knn rises over a, a", "knn grows over a, b", "a.x + > b.x"),
        *("a.x > 3", "a..x > b.x", "a.x == b.x", "2 a.x > b.x"),
    ],
)
def test_what_is_no_claim_is_named_with_a_way_to_write_one(text: str) -> None:
    with pytest.raises(InputError, match=r"the claim .*(write|each once)"):
        read_claim(text)
