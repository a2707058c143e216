"""Colour steps and blur against torchvision's and Pillow's on PIL images, and against algebra."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torchvision.transforms.functional as TF
from numpy.typing import NDArray
from PIL import Image as PIL
from PIL import ImageFilter

from pretrain import colour
from pretrain.colour import BRIGHTNESS, CONTRAST, HUE, SATURATION, Affine
from pretrain.images import Image
from tests.pretrain import pictures

PIL_STEPS: dict[int, Callable[[PIL.Image, float], PIL.Image]] = {
    BRIGHTNESS: TF.adjust_brightness,
    CONTRAST: TF.adjust_contrast,
    SATURATION: TF.adjust_saturation,
    HUE: TF.adjust_hue,
}
ODD_SHAPES = [(1, 1), (1, 7), (200, 1), (2, 3)]


@pytest.fixture(params=pictures.KINDS)
def picture(request: pytest.FixtureRequest) -> Image:
    return pictures.picture(request.param, request)


def difference(ours: Image, theirs: PIL.Image | Image) -> NDArray[np.int64]:
    """Levels between two images of the same shape."""
    other = np.asarray(theirs)
    assert ours.shape == other.shape and ours.dtype == np.uint8
    return np.abs(ours.astype(np.int64) - other.astype(np.int64))


def step_by_step(
    pixels: Image, factors: tuple[float, float, float], hue: float, order: tuple[int, ...]
) -> PIL.Image:
    """torchvision's jitter on PIL with given numbers."""
    image = PIL.fromarray(pixels)
    for step in order:
        image = PIL_STEPS[step](image, hue if step == HUE else factors[step])
    return image


@pytest.mark.parametrize("factor", [0.0, 0.6, 0.9, 1.0, 1.1, 1.4, 3.0])
@pytest.mark.parametrize("step", [BRIGHTNESS, CONTRAST, SATURATION])
def test_a_colour_step_equals_torchvision_on_pil_to_one_level(
    picture: Image, step: int, factor: float
) -> None:
    factors = tuple(factor if i == step else 1.0 for i in range(3))
    ours = colour.jitter(picture, factors, 0.0, (step,))  # type: ignore[arg-type]
    assert difference(ours, PIL_STEPS[step](PIL.fromarray(picture), factor)).max() <= 1


def test_grayscale_equals_pil_to_one_level(picture: Image) -> None:
    assert difference(colour.grayscale(picture), PIL.fromarray(picture).convert("L")).max() <= 1


@pytest.mark.parametrize("shift", [-0.5, -0.4, -0.1, -0.003, 0.0, 0.003, 0.1, 0.4, 0.5])
def test_hue_equals_torchvision_on_pil_to_its_256_steps(picture: Image, shift: float) -> None:
    # One of PIL's steps of the hue is 6 levels of a fully saturated colour's channel; both round
    # to them, to the nearest here and downwards there.
    apart = difference(colour.hue(picture, shift), TF.adjust_hue(PIL.fromarray(picture), shift))
    assert apart.max() <= 14 and apart.mean() < 1.3


@pytest.mark.parametrize(
    ("colours", "shift", "expected"),
    [
        ((255, 0, 0), 1 / 3, (0, 255, 0)),
        ((0, 0, 255), 1 / 3, (255, 0, 0)),  # beyond the end of the circle
        ((255, 0, 0), -1 / 3, (0, 0, 255)),  # before its start
        ((0, 255, 255), 0.5, (255, 0, 0)),
        ((0, 255, 255), -0.5, (255, 0, 0)),
        ((90, 90, 90), 0.3, (90, 90, 90)),
    ],
)
def test_hue_goes_round_in_a_circle(
    colours: tuple[int, int, int], shift: float, expected: tuple[int, int, int]
) -> None:
    pixels = np.full((2, 3, 3), colours, dtype=np.uint8)
    turned = colour.hue(pixels, shift)
    # Turned by 85/256 for a third, 127/256 for a half: up to 12 levels off.
    assert difference(turned, np.full((2, 3, 3), expected, dtype=np.uint8)).max() <= 12


@pytest.mark.parametrize("order", colour.ORDERS)
def test_jitter_equals_one_step_after_the_other(picture: Image, order: tuple[int, ...]) -> None:
    """Merged or not: bright and dark factors in every order, against torchvision's four passes."""
    rng = np.random.default_rng(sum(4**i * step for i, step in enumerate(order)))
    for _ in range(2):
        brightness, contrast, saturation = rng.uniform(0.6, 1.4, 3)
        factors = (brightness, contrast, saturation)
        hue = rng.uniform(-0.4, 0.4)
        apart = difference(
            colour.jitter(picture, factors, hue, order),
            step_by_step(picture, factors, hue, order),
        )
        # PIL cuts decimals off four times, which darkens by half a level each.
        assert apart.mean() < 3 and np.percentile(apart, 99) <= 16


@pytest.mark.parametrize(
    ("first", "then"), list(itertools.permutations([BRIGHTNESS, CONTRAST, SATURATION], 2))
)
def test_what_saturates_between_two_steps_stays_saturated(first: int, then: int) -> None:
    pixels = pictures.noise()
    factors = tuple({first: 1.9, then: 0.3}.get(i, 1.0) for i in range(3))
    ours = colour.jitter(pixels, factors, 0.0, (first, then))  # type: ignore[arg-type]
    theirs = step_by_step(pixels, factors, 0.0, (first, then))  # type: ignore[arg-type]
    assert difference(ours, theirs).max() <= 2


def test_merged_is_one_map_after_the_other() -> None:
    rng = np.random.default_rng(0)
    luma = np.array(colour.LUMA)

    def mapped(x: NDArray[np.float64], affine: Affine) -> NDArray[np.float64]:
        return affine.scale * x + affine.gray * (x @ luma)[..., None] + affine.shift

    assert np.isclose(luma.sum(), 1)
    x = rng.uniform(0, 255, (50, 3))
    for _ in range(20):
        first, then = Affine(*rng.normal(size=3)), Affine(*rng.normal(size=3))
        np.testing.assert_allclose(
            mapped(x, colour.merged(first, then)), mapped(mapped(x, first), then)
        )
    assert colour.merged(colour.IDENTITY, first) == colour.merged(first, colour.IDENTITY) == first


@pytest.mark.parametrize("affine", [Affine(0.7, 0.4, -9.3), Affine(1.3, -0.2, 4.0)])
def test_apply_is_its_formula_to_one_level_and_biased_by_none(affine: Affine) -> None:
    pixels = pictures.noise()
    luma = (pixels @ np.array(colour.LUMA))[..., None]
    exact = affine.scale * pixels + affine.gray * luma + affine.shift
    got = colour.apply(pixels, affine)
    assert np.abs(got - exact.clip(0, 255)).max() < 1
    inside = (exact > 1) & (exact < 254)
    assert abs((got - exact)[inside].mean()) < 0.1


def test_contrast_pivots_on_the_mean_of_the_merged_image() -> None:
    """The mean is that after brightness, though brightness was not applied yet."""
    pixels = pictures.smooth()
    factors = (0.6, 0.0, 1.0)
    got = colour.jitter(pixels, factors, 0.0, (BRIGHTNESS, CONTRAST))
    mean = np.asarray(PIL.fromarray(pixels).convert("L")).mean() * 0.6
    assert difference(got, np.full_like(got, round(mean))).max() <= 1


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0])
def test_blur_equals_pils_gaussian_blur(picture: Image, sigma: float) -> None:
    theirs = PIL.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma))
    apart = difference(colour.blur(picture, sigma), theirs)
    # PIL repeats the edge before each of its three passes, here it is repeated once.
    edge = 7
    assert apart[edge:-edge, edge:-edge].max() <= 4 and apart.mean() < 1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_has_the_spread_it_is_asked_for_and_darkens_nothing(sigma: float) -> None:
    for level in (0, 1, 254, 255):
        flat = np.full((9, 9, 3), level, dtype=np.uint8)
        np.testing.assert_array_equal(colour.blur(flat, sigma), flat)
    kernel = colour.blur_kernel(colour.sigma_128(sigma)).astype(np.float64)
    taps = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == 1 and (kernel == kernel[::-1]).all()
    # Weights of eight bits: a tap of less than 1/512 is lost, and with it a little spread.
    assert np.sqrt((kernel * taps**2).sum()) == pytest.approx(sigma, abs=0.06)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)])
@pytest.mark.parametrize("factors", [(0.7, 1.3, 1.2), (1.3, 0.8, 0.6), (1.4, 1.4, 1.4)])
def test_one_channel_gives_what_three_equal_ones_give(
    factors: tuple[float, float, float], order: tuple[int, ...]
) -> None:
    gray = colour.grayscale(pictures.smooth())
    three = np.repeat(gray[..., None], 3, axis=2)

    def steps(pixels: Image) -> Image:
        return colour.blur(colour.jitter(pixels, factors, 0.2, order), 1.3)

    ours, theirs = steps(gray), steps(three)
    assert ours.ndim == 2 and colour.grayscale(ours) is ours
    assert difference(np.repeat(ours[..., None], 3, axis=2), theirs).max() <= 1
    assert colour.mean_luma(gray) == pytest.approx(colour.mean_luma(three))


@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_images_of_a_few_pixels_go_through_every_step(shape: tuple[int, int]) -> None:
    pixels = pictures.noise()[: shape[0], : shape[1]]
    pixels = np.ascontiguousarray(np.resize(pixels, (*shape, 3)))
    factors = (0.7, 0.8, 0.9)
    jittered = colour.jitter(pixels, factors, 0.1, (3, 2, 1, 0))
    assert difference(jittered, step_by_step(pixels, factors, 0.1, (3, 2, 1, 0))).max() <= 14
    assert colour.blur(pixels, 2.0).shape == pixels.shape
    assert colour.grayscale(pixels).shape == shape


def test_no_step_writes_into_its_input(picture: Image) -> None:
    before = picture.copy()
    colour.jitter(picture, (1.4, 0.6, 1.2), 0.3, (3, 0, 1, 2))
    colour.hue(picture, 0.2)
    colour.blur(picture, 1.0)
    colour.grayscale(picture)
    np.testing.assert_array_equal(picture, before)
