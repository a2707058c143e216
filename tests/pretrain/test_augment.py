from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms as T
import torchvision.transforms.functional as TF
from PIL import Image as PIL

from pretrain import augment
from pretrain.config import CHOICES


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 4)
    return cv2.normalize(noise, None, 20, 235, cv2.NORM_MINMAX)


def test_choices_of_the_config_are_what_exists() -> None:
    assert set(CHOICES["AUGMENT.RECIPE"]) == set(augment.RECIPES)


def test_views_depend_on_seed_pass_and_index_alone(photo: np.ndarray) -> None:
    recipe = augment.RECIPES["moco_v2"]

    def view(*key: int) -> np.ndarray:
        return augment.views(photo, recipe, size=32, count=2, rng=augment.sample_rng(*key))

    first = view(3, 1, 7)
    assert first.shape == (2, 32, 32, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, view(3, 1, 7))
    assert not np.array_equal(first[0], first[1])
    for other in [(4, 1, 7), (3, 2, 7), (3, 1, 8)]:
        assert not np.array_equal(first, view(*other))


def test_the_source_image_is_left_as_it_was(photo: np.ndarray) -> None:
    before = photo.copy()
    for i in range(20):
        augment.views(
            photo, augment.RECIPES["moco_v2"], size=90, count=2, rng=augment.sample_rng(0, 0, i)
        )
    np.testing.assert_array_equal(photo, before)


@pytest.mark.parametrize("shape", [(90, 120), (300, 40), (40, 300)])
def test_crop_geometry_has_the_distribution_of_torchvision(shape: tuple[int, int]) -> None:
    height, width = shape
    recipe = augment.RECIPES["moco_v2"]
    rng = np.random.default_rng(0)
    ours = np.array(
        [augment.random_crop(height, width, recipe, rng.random(22).tolist()) for _ in range(4000)]
    )
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    theirs = np.array(
        [T.RandomResizedCrop.get_params(image, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)]
    )
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all() and (ours[:, 1] + ours[:, 3] <= width).all()
    # 4,000 draws: the standard error of a mean is below 0.8 % of the side.
    scale = np.array([height, width, height, width])
    np.testing.assert_allclose(ours.mean(0) / scale, theirs.mean(0) / scale, atol=0.025)
    np.testing.assert_allclose(ours.std(0) / scale, theirs.std(0) / scale, atol=0.025)


@pytest.mark.parametrize("amount", [-0.4, -0.1, 0.0, 0.1, 0.4])
def test_colour_steps_equal_torchvision_on_pil_to_a_few_levels(
    photo: np.ndarray, amount: float
) -> None:
    pil = PIL.fromarray(photo)
    pairs = [
        (augment.brightness(photo, 1 + amount), TF.adjust_brightness(pil, 1 + amount), 1),
        (augment.contrast(photo, 1 + amount), TF.adjust_contrast(pil, 1 + amount), 2),
        (augment.saturation(photo, 1 + amount), TF.adjust_saturation(pil, 1 + amount), 2),
        (augment.grayscale(photo), TF.to_grayscale(pil, 3), 1),
    ]
    for ours, theirs, levels in pairs:
        difference = np.abs(ours.astype(int) - np.asarray(theirs).astype(int))
        assert difference.max() <= levels
    turned = TF.adjust_hue(pil, amount)
    difference = np.abs(augment.hue(photo, amount).astype(int) - np.asarray(turned).astype(int))
    assert difference.mean() < 1.5


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_a_gaussian(photo: np.ndarray, sigma: float) -> None:
    ours = augment.blur(photo, sigma).astype(float)
    tensor = torch.from_numpy(photo).permute(2, 0, 1).float()
    theirs = TF.gaussian_blur(tensor, [13, 13], [sigma, sigma]).permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() < 3


@pytest.mark.parametrize("name", ["moco_v1", "moco_v2", "crop_flip"])
def test_pixel_statistics_of_views_are_those_of_torchvision(photo: np.ndarray, name: str) -> None:
    size, count = 32, 600
    jitter = {
        "moco_v1": [
            T.RandomGrayscale(0.2),
            T.ColorJitter(0.4, 0.4, 0.4, 0.4),
        ],
        "moco_v2": [
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(13, (0.1, 2.0))], p=0.5),
        ],
        "crop_flip": [],
    }[name]
    transform = T.Compose(
        [T.RandomResizedCrop(size, scale=(0.2, 1.0)), *jitter, T.RandomHorizontalFlip()]
    )
    torch.manual_seed(0)
    pil = PIL.fromarray(photo)
    theirs = np.stack([np.asarray(transform(pil)) for _ in range(count)]).astype(float)
    recipe = augment.RECIPES[name]
    ours = np.concatenate(
        [
            augment.views(photo, recipe, size=size, count=2, rng=augment.sample_rng(0, 0, i))
            for i in range(count // 2)
        ]
    ).astype(float)
    # Mean over views, spread between views, spread inside a view, share of gray views.
    for statistic, tolerance in [
        (lambda v: v.mean(), 4.0),
        (lambda v: v.mean(axis=(1, 2, 3)).std(), 4.0),
        (lambda v: v.std(axis=(1, 2)).mean(), 3.0),
        (lambda v: (np.ptp(v, axis=3).max(axis=(1, 2)) == 0).mean() * 100, 6.0),
    ]:
        assert abs(statistic(ours) - statistic(theirs)) < tolerance


def test_normalise_is_torchvisions_in_channels_last_memory() -> None:
    pixels = torch.randint(0, 256, (2, 5, 6, 3), dtype=torch.uint8)
    expected = TF.normalize(
        pixels.permute(0, 3, 1, 2).float() / 255, augment.IMAGE_MEAN, augment.IMAGE_STD
    )
    got = augment.normalise(pixels)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_centre_view_is_the_middle_of_the_image() -> None:
    image = np.zeros((80, 160, 3), dtype=np.uint8)
    image[:, 60:100] = 255
    view = augment.centre_view(image, 32)
    assert view.shape == (32, 32, 3)
    assert view[:, 15:17].min() == 255 and view[:, 0].max() == 0
