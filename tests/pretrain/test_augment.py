"""Views: determinism, pixels and statistics against torchvision's recipes on PIL images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from PIL import Image as PIL
from PIL import ImageFilter
from torchvision.models import ResNet50_Weights

from pretrain import augment, colour
from pretrain.augment import Recipe
from pretrain.images import Image
from tests.pretrain import pictures


class PilBlur:
    """PIL's Gaussian blur with a standard deviation drawn from 0.1 to 2 pixels."""

    def __call__(self, image: PIL.Image) -> PIL.Image:
        return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


def reference_recipe(name: str, size: int) -> T.Compose:
    """The recipe as the released code has it, by torchvision's public transforms."""
    steps: list[Any] = []
    if name == "moco_v1":
        steps = [T.RandomGrayscale(0.2), T.ColorJitter(0.4, 0.4, 0.4, 0.4)]
    elif name == "moco_v2":
        jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        steps = [jitter, T.RandomGrayscale(0.2), T.RandomApply([PilBlur()], p=0.5)]
    crop = T.RandomResizedCrop(size, scale=(0.2, 1.0))
    return T.Compose([crop, *steps, T.RandomHorizontalFlip()])


def our_views(image: Image, recipe: Recipe, *, size: int, count: int) -> Image:
    """Views of `count` passes over one image."""
    return np.concatenate(
        [
            augment.views(image, recipe, size=size, count=1, rng=augment.generator(0, epoch, 0))
            for epoch in range(count)
        ]
    )


def test_views_depend_on_seed_pass_and_index_alone() -> None:
    picture, recipe = pictures.smooth(), augment.RECIPES["moco_v2"]

    def view(*key: int) -> Image:
        return augment.views(picture, recipe, size=32, count=2, rng=augment.generator(*key))

    first = view(3, 1, 7)
    assert first.shape == (2, 32, 32, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, view(3, 1, 7))
    assert not np.array_equal(first[0], first[1])
    for other in [(4, 1, 7), (3, 2, 7), (3, 1, 8), (1, 3, 7), (3, 7, 1)]:
        assert not np.array_equal(first, view(*other))


def test_views_do_not_depend_on_the_order_of_work_nor_on_global_generators() -> None:
    picture, recipe = pictures.smooth(), augment.RECIPES["moco_v2"]
    keys = [(0, epoch, index) for epoch in range(2) for index in range(4)]

    def work(order: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], Image]:
        return {
            key: augment.views(picture, recipe, size=32, count=2, rng=augment.generator(*key))
            for key in order
        }

    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index]
    forward = work(keys)
    np.testing.assert_array_equal(before[0], np.random.get_state()[1])  # type: ignore[index]
    assert torch.equal(before[1], torch.get_rng_state())
    np.random.seed(1)
    torch.manual_seed(1)
    backward = work(keys[::-1])
    for key in keys:
        np.testing.assert_array_equal(forward[key], backward[key])


def test_the_first_view_is_the_same_whether_or_not_a_second_is_made() -> None:
    picture, recipe = pictures.smooth(), augment.RECIPES["moco_v2"]
    for index in range(8):
        one, two = (
            augment.views(picture, recipe, size=32, count=n, rng=augment.generator(0, 0, index))
            for n in (1, 2)
        )
        np.testing.assert_array_equal(one[0], two[0])


@pytest.mark.parametrize("flip_p", [0.0, 1.0])
def test_a_view_is_no_window_into_the_source(flip_p: float) -> None:
    source = pictures.smooth(32, 32)
    before = source.copy()
    whole = Recipe(min_scale=1.0, ratio=(1.0, 1.0), flip_p=flip_p)
    view = augment.views(source, whole, size=32, count=1, rng=augment.generator(0, 0, 0))
    np.testing.assert_array_equal(view[0], source[:, ::-1] if flip_p else source)
    view[:] = 0
    for i in range(20):
        augment.views(
            source, augment.RECIPES["moco_v2"], size=32, count=2, rng=augment.generator(0, 0, i)
        )
    np.testing.assert_array_equal(source, before)


@pytest.mark.parametrize("kind", pictures.KINDS)
@pytest.mark.parametrize("size", [16, 32, 100, 224])
def test_resize_equals_pils_bilinear_filter(
    kind: str, size: int, request: pytest.FixtureRequest
) -> None:
    crop = pictures.picture(kind, request)[3:60, 5:62]
    ours = augment.resize(crop, size, size).astype(int)
    theirs = np.asarray(PIL.fromarray(crop).resize((size, size), PIL.Resampling.BILINEAR))
    assert np.abs(ours - theirs).max() <= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (2, 300)])
def test_resize_of_a_few_pixels_equals_pils(shape: tuple[int, int]) -> None:
    source = np.ascontiguousarray(np.resize(pictures.noise(), (*shape, 3)))
    theirs = np.asarray(PIL.fromarray(source).resize((9, 7), PIL.Resampling.BILINEAR))
    assert np.abs(augment.resize(source, 7, 9).astype(int) - theirs).max() <= 1


def recorded(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, calls: dict[str, tuple[Any, ...]]
) -> None:
    """Let the function work and keep, of its last call, what it was given and what it returned."""
    original: Callable[..., Any] = getattr(module, name)

    def wrapper(*args: Any) -> Any:
        result = original(*args)
        calls[name] = (*args, result)
        return result

    monkeypatch.setattr(module, name, wrapper)


@pytest.mark.parametrize("kind", ["smooth", "photo"])
@pytest.mark.parametrize("name", ["moco_v1", "moco_v2", "crop_flip"])
def test_a_view_equals_pil_and_torchvision_given_the_same_draws(
    monkeypatch: pytest.MonkeyPatch, kind: str, name: str, request: pytest.FixtureRequest
) -> None:
    source = pictures.picture(kind, request)
    calls: dict[str, tuple[Any, ...]] = {}
    recorded(monkeypatch, augment, "random_crop", calls)
    for step in ("jitter", "grayscale", "blur"):
        recorded(monkeypatch, colour, step, calls)
    flips = 0
    for index in range(60):
        calls.clear()
        rng = augment.generator(0, 0, index)
        (view,) = augment.views(source, augment.RECIPES[name], size=48, count=1, rng=rng)
        crop = calls["random_crop"][-1]
        image = TF.resized_crop(PIL.fromarray(source), *crop, [48, 48])
        if name == "moco_v1" and "grayscale" in calls:
            image = TF.to_grayscale(image, 3)
        if "jitter" in calls:
            _, factors, hue, order, _ = calls["jitter"]
            steps = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation]
            for step in order:
                image = (
                    TF.adjust_hue(image, hue) if step == 3 else steps[step](image, factors[step])
                )
        if name == "moco_v2" and "grayscale" in calls:
            image = TF.to_grayscale(image, 3)
        if "blur" in calls:
            image = image.filter(ImageFilter.GaussianBlur(calls["blur"][1]))
        straight = np.abs(view.astype(int) - np.asarray(image)).mean()
        flipped = np.abs(view[:, ::-1].astype(int) - np.asarray(image)).mean()
        assert min(straight, flipped) < 3
        flips += flipped < straight
    assert 15 <= flips <= 45


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2", "crop_flip"])
def test_statistics_of_views_are_those_of_torchvision(name: str) -> None:
    assert_same_statistics([pictures.smooth()], name, views=600)


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2"])
def test_statistics_of_views_of_photos_are_those_of_torchvision(name: str, data_root: Path) -> None:
    assert_same_statistics(pictures.photos(data_root, 4), name, views=150)


def assert_same_statistics(sources: list[Image], name: str, *, views: int) -> None:
    """`views` views of each picture by us and by torchvision, statistics of all together."""
    size = 32
    transform = reference_recipe(name, size)
    torch.manual_seed(0)
    theirs = np.stack(
        [
            np.asarray(transform(pil))
            for source in sources
            for pil in [PIL.fromarray(source)] * views
        ]
    ).astype(float)
    ours = np.concatenate(
        [our_views(s, augment.RECIPES[name], size=size, count=views) for s in sources]
    ).astype(float)

    def close(statistic: Callable[[np.ndarray], Any], tolerance: float) -> None:
        np.testing.assert_allclose(statistic(ours), statistic(theirs), rtol=0, atol=tolerance)

    # Of 600 views each, whose means spread by up to 35 levels: standard errors of 1.4 to 2 levels.
    close(lambda v: v.mean(axis=(0, 1, 2)), 6.0)  # a channel's mean
    close(lambda v: v.std(axis=(0, 1, 2)), 4.0)  # and std
    close(lambda v: v.mean(axis=(1, 2, 3)).std(), 4.0)  # spread between views
    close(lambda v: v.std(axis=(1, 2)).mean(), 3.0)  # spread inside a view
    close(lambda v: np.abs(np.diff(v, axis=2)).mean(), 0.8)  # sharpness
    close(lambda v: np.ptp(v, axis=3).mean(), 5.0)  # colour
    close(lambda v: 100 * (np.ptp(v, axis=3).max(axis=(1, 2)) == 0).mean(), 8.0)  # gray views


@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (20, 96, 96, 3), (1, 1, 1, 3), (0, 4, 4, 3)])
def test_normalise_is_pixel_minus_mean_over_std_in_channels_last(
    shape: tuple[int, int, int, int],
) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    mean = torch.tensor(augment.IMAGE_MEAN, dtype=torch.float64)
    std = torch.tensor(augment.IMAGE_STD, dtype=torch.float64)
    expected = ((pixels.double() / 255 - mean) / std).permute(0, 3, 1, 2).float()
    got = augment.normalise(pixels)
    assert got.dtype == torch.float32 and got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-6)


def test_normalise_takes_one_view_out_of_a_batch_of_pairs() -> None:
    pairs = torch.randint(0, 256, (3, 2, 8, 8, 3), dtype=torch.uint8)
    before = pairs.clone()
    for view in range(2):
        got = augment.normalise(pairs.unbind(dim=1)[view])
        assert torch.equal(got, augment.normalise(pairs[:, view].contiguous()))
    assert torch.equal(pairs, before)


def test_mean_and_std_are_those_of_torchvisions_in_1m_weights() -> None:
    preset = ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert tuple(preset.mean) == augment.IMAGE_MEAN and tuple(preset.std) == augment.IMAGE_STD


def test_centre_view_is_the_middle_of_the_image() -> None:
    image = np.zeros((80, 160, 3), dtype=np.uint8)
    image[:, 60:100] = 255
    view = augment.centre_view(image, 32)
    assert view.shape == (32, 32, 3)
    assert view[:, 15:17].min() == 255 and view[:, 0].max() == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 90), (90, 1), (33, 47)])
def test_centre_view_of_any_shape_is_torchvisions_resize_and_centre_crop(
    shape: tuple[int, int],
) -> None:
    source = np.ascontiguousarray(pictures.smooth()[: shape[0], : shape[1]])
    view = augment.centre_view(source, 28)
    assert view.shape == (28, 28, 3)
    theirs = TF.center_crop(TF.resize(PIL.fromarray(source), 32), 28)
    assert np.abs(view.astype(int) - np.asarray(theirs)).mean() < 6
