"""What chance decides about a view, its distribution against the recipe's and torchvision's."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as T

from pretrain import augment, colour
from pretrain.augment import Recipe
from pretrain.images import Image


def crops(shape: tuple[int, int], recipe: Recipe, count: int) -> np.ndarray:
    """Crops [count, 4] of an image of that shape: top, left, height, width."""
    rng = np.random.default_rng(0)
    return np.array([augment.random_crop(*shape, recipe, u) for u in rng.random((count, 22))])


@pytest.mark.parametrize("shape", [(90, 120), (300, 40), (40, 300), (375, 500)])
@pytest.mark.parametrize("min_scale", [0.2, 0.08])
def test_crop_geometry_has_the_distribution_of_torchvision(
    shape: tuple[int, int], min_scale: float
) -> None:
    height, width = shape
    ours = crops(shape, Recipe(min_scale=min_scale), 4000)
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    scale, ratio = [min_scale, 1.0], [3 / 4, 4 / 3]
    draw = T.RandomResizedCrop.get_params
    theirs = np.array([draw(image, scale, ratio) for _ in range(2000)])
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, :2] + ours[:, 2:] <= shape).all()

    def shares(crop: np.ndarray) -> np.ndarray:
        top, left, h, w = crop.T
        return np.stack(
            [
                top / height,
                left / width,
                h / height,
                w / width,
                h * w / (height * width),
                np.log(w / h) / (2 * math.log(4 / 3)),
            ]
        )

    # 2,000 draws of numbers between 0 and 1: the standard error of a decile is below 0.016.
    deciles = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(
        np.quantile(shares(ours), deciles, axis=1),
        np.quantile(shares(theirs), deciles, axis=1),
        atol=0.06,
    )
    np.testing.assert_allclose(shares(ours).mean(1), shares(theirs).mean(1), atol=0.025)
    np.testing.assert_allclose(shares(ours).std(1), shares(theirs).std(1), atol=0.025)


def test_area_is_uniform_and_aspect_log_uniform_where_every_try_fits() -> None:
    _, _, h, w = crops((1000, 1000), Recipe(min_scale=0.2, ratio=(0.99, 1.01)), 4000).T
    area = (h * w / 1e6 - 0.2) / 0.8
    np.testing.assert_allclose(
        np.quantile(area, [0.1, 0.25, 0.5, 0.75]), [0.1, 0.25, 0.5, 0.75], atol=0.04
    )
    # Areas up to 0.36 hold every ratio from 1/2 to 2 in a square.
    _, _, h, w = crops((1000, 1000), Recipe(min_scale=0.2, ratio=(1 / 2, 2)), 4000).T
    small = h * w < 0.36e6
    ratio = np.log2(w / h)[small] / 2 + 0.5
    np.testing.assert_allclose(
        np.quantile(ratio, [0.1, 0.25, 0.5, 0.75, 0.9]), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.05
    )


@pytest.mark.parametrize("shape", [(4, 400), (400, 4), (1, 1000), (1000, 1)])
def test_an_image_that_no_try_fits_gives_torchvisions_central_crop(shape: tuple[int, int]) -> None:
    # Areas above 0.9 of these never fit: torchvision's fallback has no chance in it.
    recipe = Recipe(min_scale=0.9)
    theirs = T.RandomResizedCrop.get_params(torch.zeros(3, *shape), [0.9, 1.0], [3 / 4, 4 / 3])
    ours = crops(shape, recipe, 20)
    np.testing.assert_array_equal(ours, np.broadcast_to(theirs, ours.shape))


@pytest.mark.parametrize("u", [0.0, math.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (375, 500), (4096, 4096)])
def test_the_ends_of_chance_stay_inside_the_image(shape: tuple[int, int], u: float) -> None:
    top, left, h, w = augment.random_crop(*shape, Recipe(), [u] * 22)
    assert 0 <= top <= shape[0] - h and 0 <= left <= shape[1] - w and min(h, w) >= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 500), (500, 1), (3, 2), (7, 1200)])
@pytest.mark.parametrize("name", list(augment.RECIPES))
def test_images_of_any_shape_give_views(shape: tuple[int, int], name: str) -> None:
    image = np.full((*shape, 3), (200, 100, 50), dtype=np.uint8)
    for index in range(10):
        views = augment.views(
            image,
            augment.RECIPES[name],
            size=16,
            count=2,
            rng=augment.generator(0, 0, index),
        )
        assert views.shape == (2, 16, 16, 3)
        # One colour stays one colour through crop, resize, jitter and blur.
        assert (views == views[:, :1, :1]).all()


def draws(monkeypatch: pytest.MonkeyPatch, recipe: Recipe, count: int) -> list[dict[str, Any]]:
    """What each of `count` views was given, of an image that brightens to the right."""
    rows: list[dict[str, Any]] = []

    def jitter(
        pixels: Image, factors: tuple[float, ...], hue: float, order: tuple[int, ...]
    ) -> Image:
        rows[-1].update(jitter=True, factors=factors, hue=hue, order=order)
        rows[-1]["steps"].append("jitter")
        return pixels

    def grayscale(pixels: Image) -> Image:
        rows[-1]["gray"] = True
        rows[-1]["steps"].append("gray")
        return pixels

    def blur(pixels: Image, sigma: float) -> Image:
        rows[-1].update(blur=True, sigma=sigma)
        rows[-1]["steps"].append("blur")
        return pixels

    def crop(*args: Any) -> tuple[int, int, int, int]:
        top, left, height, width = random_crop(*args)
        rows[-1].update(area=height * width, aspect=height / width)
        # Midpoints of the whole numbers: a crop of nearly all the image has few places to lie, and
        # their left ends lie below 1/2 on average, the more the fewer they are.
        rows[-1].update(top=(top + 0.5) / (65 - height), left=(left + 0.5) / (65 - width))
        return top, left, height, width

    random_crop = augment.random_crop
    monkeypatch.setattr(augment, "random_crop", crop)
    for step in (jitter, grayscale, blur):
        monkeypatch.setattr(colour, step.__name__, step)
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None], 3, axis=2).repeat(64, axis=0)
    for epoch in range(count):
        rows.append({"jitter": False, "gray": False, "blur": False, "steps": []})
        (view,) = augment.views(ramp, recipe, size=8, count=1, rng=augment.generator(0, epoch, 0))
        rows[-1]["flip"] = bool(view[0, 0, 0] > view[0, -1, 0])
    return rows


def given(rows: list[dict[str, Any]], key: str) -> list[Any]:
    """What was given by that name, of the views that were given it."""
    return [row[key] for row in rows if key in row]


def assert_uniform(values: Any, low: float, high: float) -> None:
    """Quantiles and ends of a uniform distribution, a column at a time; 1,500 draws or more."""
    share = (np.asarray(values) - low) / (high - low)
    assert share.min() >= 0 and share.max() <= 1
    at = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    expected = at if share.ndim == 1 else at[:, None]
    assert np.abs(np.quantile(share, at, axis=0) - expected).max() < 0.05


@pytest.mark.parametrize(
    ("name", "chances"),
    [
        ("moco_v1", {"jitter": 1.0, "gray": 0.2, "blur": 0.0, "flip": 0.5}),
        ("moco_v2", {"jitter": 0.8, "gray": 0.2, "blur": 0.5, "flip": 0.5}),
        ("moco_v2_no_blur", {"jitter": 0.8, "gray": 0.2, "blur": 0.0, "flip": 0.5}),
        ("crop_flip", {"jitter": 0.0, "gray": 0.0, "blur": 0.0, "flip": 0.5}),
    ],
)
def test_probabilities_and_ranges_are_the_recipes(
    monkeypatch: pytest.MonkeyPatch, name: str, chances: dict[str, float]
) -> None:
    rows = draws(monkeypatch, augment.RECIPES[name], 4000)
    for step, chance in chances.items():
        # 4,000 draws: the standard error is at most 0.8 %.
        assert np.mean(given(rows, step)) == pytest.approx(chance, abs=0.03), step
    expected = ["gray", "jitter"] if name == "moco_v1" else ["jitter", "gray", "blur"]
    for steps in given(rows, "steps"):
        assert list(dict.fromkeys(steps)) == [step for step in expected if step in steps]
    if chances["jitter"]:
        assert_uniform(given(rows, "factors"), 0.6, 1.4)
        hue = 0.4 if name == "moco_v1" else 0.1
        assert_uniform(given(rows, "hue"), -hue, hue)
        orders = [colour.ORDERS.index(order) for order in given(rows, "order")]
        shares = np.bincount(orders, minlength=24) / len(orders)
        assert shares.min() > 0.6 / 24 and shares.max() < 1.4 / 24
    if chances["blur"]:
        assert_uniform(given(rows, "sigma"), 0.1, 2.0)


def test_no_draw_of_a_view_tells_anything_about_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """No uniform number serves two purposes: crop, flip, jitter, gray and blur are uncorrelated."""
    columns = []
    for row in draws(monkeypatch, augment.RECIPES["moco_v2"], 4000):
        order = colour.ORDERS.index(row["order"]) if row["jitter"] else np.nan
        factors = row.get("factors", [np.nan] * 3)
        rest = [row.get(key, np.nan) for key in ("hue", "sigma", "area", "aspect", "top", "left")]
        columns.append([row["jitter"], row["gray"], row["blur"], row["flip"]])
        columns[-1] += [*factors, order, *rest]
    values = np.array(columns, dtype=float)
    pairs = 0
    for i, j in itertools.combinations(range(values.shape[1]), 2):
        x, y = values[np.isfinite(values[:, i]) & np.isfinite(values[:, j])][:, [i, j]].T
        if np.ptp(x) > 0 and np.ptp(y) > 0:  # jitter's numbers exist only where it happens
            # 1,600 views or more: the standard error is at most 0.025.
            assert abs(np.corrcoef(x, y)[0, 1]) < 0.1, (i, j)
            pairs += 1
    assert pairs == 14 * 13 // 2 - 5 - 1


def test_the_views_of_an_image_are_drawn_independently(monkeypatch: pytest.MonkeyPatch) -> None:
    hues: list[float] = []

    def jitter(
        pixels: Image, factors: tuple[float, ...], hue: float, order: tuple[int, ...]
    ) -> Image:
        hues.append(hue)
        return pixels

    monkeypatch.setattr(colour, "jitter", jitter)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    for index in range(1500):
        augment.views(
            image,
            augment.RECIPES["moco_v1"],
            size=2,
            count=2,
            rng=augment.generator(0, 0, index),
        )
    first, second = np.array(hues).reshape(-1, 2).T
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1  # standard error 0.026
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.1  # neither do neighbours
