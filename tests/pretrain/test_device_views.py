"""Views made in batches on a device: those of the CPU, and a run with them can be resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moco_det.foundation.errors import InputError
from pretrain import augment, colour, data, device_views, train
from pretrain.augment import Recipe, ViewParameters
from pretrain.config import load_config
from pretrain.data import resident
from pretrain.images import Image
from tests.pretrain.conftest import write_images
from tests.pretrain.test_resume import EVERY, QUICK, assert_same_run, stop_at

CPU = torch.device("cpu")
SIDE, SIZE = 72, 48
WHOLE = ViewParameters((0, 0, SIDE, SIDE), False, False, None, 0.0, 0, 0.0)
EVERYTHING = Recipe(jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, gray_p=1.0, blur_p=1.0)


def picture(seed: int, *, height: int = SIDE, width: int = SIDE) -> Image:
    """Soft shapes in strong colours, black and white among them."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 4.0)
    return (128 + 110 * soft / soft.std()).clip(0, 255).astype(np.uint8)


def squares(images: list[Image], side: int = SIDE) -> torch.Tensor:
    stored = [augment.resize(image, side, side).transpose(0, 2, 1) for image in images]
    return torch.from_numpy(np.stack(stored))


def made(images: list[Image], recipe: Recipe, chosen: list[list[ViewParameters]]) -> np.ndarray:
    """Views [n, V, S, S, 3] on the device, which is the CPU."""
    rows = [
        [device_views.row(one, height=image.shape[0], width=image.shape[1], side=SIDE) for one in a]
        for image, a in zip(images, chosen, strict=True)
    ]
    maker = device_views.ViewMaker(recipe, size=SIZE, side=SIDE, device=CPU)
    return maker(squares(images), torch.tensor(rows, dtype=torch.float32)).numpy().astype(int)


def expected(
    images: list[Image],
    recipe: Recipe,
    chosen: list[list[ViewParameters]],
    monkeypatch: pytest.MonkeyPatch,
) -> np.ndarray:
    views = []
    for image, own in zip(images, chosen, strict=True):
        monkeypatch.setattr(augment, "draw_views", lambda *_, own=own, **__: own)
        rng = augment.generator(0, 0, 0)
        views.append(augment.views(image, recipe, size=SIZE, count=len(own), rng=rng))
    return np.stack(views).astype(int)


@pytest.mark.parametrize("name", list(augment.RECIPES))
def test_a_view_is_that_of_the_cpu_but_for_rounding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = augment.recipe(name, min_scale=0.2)
    images = [picture(seed) for seed in range(40)]
    chosen = [
        augment.draw_views(SIDE, SIDE, recipe, count=2, rng=augment.generator(0, 0, number))
        for number in range(len(images))
    ]
    off = np.abs(made(images, recipe, chosen) - expected(images, recipe, chosen, monkeypatch))
    assert off.max() <= 20  # a pixel or two: the CPU's hue and saturation have 8 bits
    assert (off > 4).mean() < 0.02
    assert off.mean(axis=(2, 3, 4)).max() < 1.2


STEPS: dict[str, tuple[dict[str, Any], int]] = {
    "crop": ({"crop": (9, 4, 50, 61)}, 1),
    "small crop": ({"crop": (30, 41, 17, 13)}, 1),
    "flip": ({"crop": (9, 4, 50, 61), "flip": True}, 1),
    "gray": ({"gray": True}, 1),
    "dark": ({"factors": (0.6, 1.0, 1.0)}, 1),
    "bright": ({"factors": (1.4, 1.0, 1.0)}, 2),
    "flat": ({"factors": (1.0, 0.6, 1.0)}, 1),
    "contrast": ({"factors": (1.0, 1.4, 1.0)}, 2),
    "pale": ({"factors": (1.0, 1.0, 0.6)}, 1),
    "saturated": ({"factors": (1.0, 1.0, 1.4)}, 2),
    "hue": ({"factors": (1.0, 1.0, 1.0), "hue": 0.31}, 10),
    "other hue": ({"factors": (1.0, 1.0, 1.0), "hue": -0.13}, 10),
    "blur": ({"sigma": 2.0}, 1),
    "little blur": ({"sigma": 0.4}, 1),
}


@pytest.mark.parametrize("step", STEPS)
def test_each_step_is_that_of_the_cpu(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, levels = STEPS[step]
    chosen, images = [[WHOLE._replace(**changes)]], [picture(1)]
    found = made(images, EVERYTHING, chosen)
    off = np.abs(found - expected(images, EVERYTHING, chosen, monkeypatch))
    assert off.max() <= levels and off.mean() < 0.8
    if "crop" not in changes:  # the step does something, more than rounding
        assert np.abs(found - made(images, EVERYTHING, [[WHOLE]])).mean() > 1.2


def test_every_order_of_the_jitter_is_that_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [
        [
            WHOLE._replace(factors=(1.3, 1.4, 1.4), hue=0.2, order=order)
            for order in range(len(colour.ORDERS))
        ]
    ]
    found = made([picture(2)], EVERYTHING, chosen)[0]
    off = np.abs(found - expected([picture(2)], EVERYTHING, chosen, monkeypatch)[0])
    assert off.mean(axis=(1, 2, 3)).max() < 1.2
    # the orders differ by more: each view is nearest to the CPU's in its own order
    others = [np.abs(found - view).mean() for view in np.roll(found, 1, axis=0)]
    assert min(others) > 2


def test_a_gray_first_recipe_is_gray_before_the_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(EVERYTHING, gray_first=True)
    chosen = [[WHOLE._replace(gray=True, factors=(1.4, 0.6, 1.4), hue=0.3)]]
    off = made([picture(3)], recipe, chosen) - expected([picture(3)], recipe, chosen, monkeypatch)
    assert np.abs(off).max() <= 2


@pytest.mark.parametrize("shape", [(72, 100), (120, 72)])
def test_a_crop_of_a_squeezed_picture_lies_where_it_did(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = augment.recipe("crop_flip", min_scale=0.2)
    images = [picture(seed, height=shape[0], width=shape[1]) for seed in range(20)]
    chosen = [
        augment.draw_views(*shape, recipe, count=2, rng=augment.generator(0, 0, number))
        for number in range(len(images))
    ]
    right = expected(images, recipe, chosen, monkeypatch)
    off = np.abs(made(images, recipe, chosen) - right).mean(axis=(2, 3, 4))
    moved = np.abs(right[:, :, 1:] - right[:, :, :-1]).mean()  # by one pixel of a view
    assert off.max() < moved / 2 and off.mean() < moved / 6


class Counted(TorchDispatchMode):
    """Counts the operations that are a kernel on a GPU: all but views of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.kernels += not func.is_view and "unsafe_view" not in func.name()
        return func(*args, **(kwargs or {}))


def test_a_batch_of_views_takes_few_launches_however_large_it_is() -> None:
    recipe = augment.recipe("moco_v2", min_scale=0.2)
    maker = device_views.ViewMaker(recipe, size=SIZE, side=SIDE, device=CPU)
    counts = []
    for images in (4, 8):
        rows = torch.tensor([device_views.row(WHOLE, height=SIDE, width=SIDE, side=SIDE)])
        rows, stored = rows.repeat(images, 2, 1), squares([picture(0)] * images)
        with Counted() as counted:
            maker(stored, rows)
        counts.append(counted.kernels)
    assert counts[0] == counts[1] < 100


def opened(folder: Path, on_device: bool, **named: Any) -> data.Source:
    recipe = augment.recipe("moco_v2", min_scale=0.2)
    spec = data.ViewSpec(recipe, size=32, views=2, seed=3, shorter_side=40)
    args = data.DataArgs(PATH=str(folder), CACHE_MB=0, ON_DEVICE=on_device, **named)
    return data.open_data(args, spec, batch=1, device=CPU)


def batches(source: data.Source, start: int = 0, **named: Any) -> list[data.RawBatch]:
    shape: dict[str, Any] = {"batch": 6, "stop": 7, "workers": 0, "pin": False}
    return list(source.make_loader(start=start, **shape | named))


def test_the_loader_gives_the_images_the_labels_and_but_for_rounding_the_views_of_the_cpu(
    tmp_path: Path,
) -> None:
    for name, seed in (("cat", 1), ("dog", 2)):
        write_images(tmp_path / name, 8, seed=seed, shape=(40, 40))
    pairs = zip(batches(opened(tmp_path, True)), batches(opened(tmp_path, False)), strict=True)
    for found, right in pairs:
        assert found.pixels.dtype == torch.uint8 and found.pixels.shape == right.pixels.shape
        assert torch.equal(found.indices, right.indices)
        assert torch.equal(found.labels, right.labels)
        assert (found.pixels.int() - right.pixels.int()).abs().float().mean() < 1


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_place_has_the_same_views_whatever_ran_before(
    workers: int, class_folders: Path
) -> None:
    whole = batches(opened(class_folders, True))
    later = batches(opened(class_folders, True), start=4, workers=workers)
    for a, b in zip(whole[4:], later, strict=True):
        assert torch.equal(a.pixels, b.pixels) and torch.equal(a.indices, b.indices)
    halves = [batches(opened(class_folders, True), rank=rank, world=2) for rank in (0, 1)]
    for a, *parts in zip(whole, *halves, strict=True):
        together = torch.cat([part.pixels for part in parts])
        # a product over fewer rows may be summed in another order
        assert (a.pixels.int() - together.int()).abs().max() <= 1


def test_an_image_that_does_not_open_is_replaced_counted_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, 12)
    (tmp_path / "004.jpg").write_bytes(b"")
    found, right = (opened(tmp_path, where, MAX_CORRUPT=0.1) for where in (True, False))
    assert found.corrupt.state() == {"names": [str(tmp_path / "004.jpg")], "seen": 12}
    for a, b in zip(batches(found), batches(right), strict=True):
        assert torch.equal(a.indices, b.indices)
    assert caplog.text.count("004.jpg") == 2  # once by each source
    with pytest.raises(InputError, match="STRICT"):
        opened(tmp_path, True, STRICT=True)


def test_a_set_without_a_side_is_stored_so_that_no_crop_is_smaller_than_its_view() -> None:
    assert resident.square_side(0, size=32, min_scale=0.25) == 64
    assert resident.square_side(40, size=32, min_scale=0.25) == 40


def test_a_set_too_large_is_refused_before_it_is_read(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "open_image", None)
    monkeypatch.setattr(resident.os, "sysconf", lambda name: 2**8)
    with pytest.raises(InputError) as caught:
        train.train(load_config(QUICK, [*tiny, "DATA.ON_DEVICE", "True"]))
    text = str(caught.value)
    assert "24 images as squares of 108 px" in text and "\n" not in text
    assert "DATA.ON_DEVICE False" in text and "DATA.SHORTER_SIDE" in text
    assert not (tmp_path / "run").exists()


def test_shards_are_refused(tiny: list[str]) -> None:
    words = [*tiny, "DATA.ON_DEVICE", "True", "DATA.PATH", "a-{000..001}.tar"]
    with pytest.raises(InputError, match=r"names shards.*DATA\.ON_DEVICE False"):
        train.train(load_config(QUICK, words))


@pytest.mark.parametrize("method", ["moco", "nce", "supervised"])
def test_a_run_on_views_of_the_device_goes_on_exactly(
    method: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [*tiny, "LOG_EVERY", "1", "CHECKPOINT_EVERY", "2", "DATA.ON_DEVICE", "True"]
    pairs += ["DATA.SHORTER_SIDE", "40", *EVERY[method], "OUTPUT_DIR"]
    train.train(load_config(QUICK, [*pairs, str(tmp_path / "whole")]))
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train.train(load_config(QUICK, [*pairs, str(tmp_path / "parts")]))
    train.train(load_config(QUICK, [*pairs, str(tmp_path / "parts")]), resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
