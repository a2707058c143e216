"""The linear probe and fine-tuning: what moves, what does not, and going on after a stop."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from moco_det.foundation.errors import InputError
from pretrain import augment, data, encoders
from pretrain.probe import classifier
from pretrain.probe.classifier import Classifier, Saving, train_and_test
from pretrain.probe.options import Conditions, FinetuneOptions, LinearOptions
from pretrain.probe.weights import Start, random_start

from .small_trunk import SmallTrunk

LINEAR = LinearOptions(epochs=3, lr=0.5, milestones=[2], min_scale=0.5, workers=0)
FINETUNE = FinetuneOptions(
    epochs=3, lr=0.05, head_lr=0.5, milestones=[2], min_scale=0.5, weight_decay=0.0, workers=0
)
HOW = Conditions(size=32, batch=8)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    monkeypatch.setitem(encoders.ARCHITECTURES, "small", SmallTrunk)
    return random_start("small", seed=0)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> data.ImageList:
    """Two classes that differ in colour: any trunk tells them apart."""
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for channel, name in ((0, "blue"), (2, "red")):
        (root / name).mkdir()
        for i in range(12):
            image = rng.integers(0, 80, (40, 44, 3), dtype=np.uint8)
            image[..., channel] += 150
            cv2.imwrite(str(root / name / f"{i}.png"), image)
    return data.list_images(str(root))


def copy(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_linear_probe_learns_and_leaves_the_trunk(start: Start, colours: data.ImageList) -> None:
    before = copy(start.encoder)
    got = train_and_test(start.encoder, (colours, colours), LINEAR, HOW)
    assert got.top1 == 100.0 and got.mean_class == 100.0
    assert same(copy(start.encoder), before)


def test_a_trunk_that_moves_is_seen(
    start: Start, colours: data.ImageList, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without this line of Classifier batch norm would go on counting.
    monkeypatch.setattr(Classifier, "train", torch.nn.Module.train)
    with pytest.raises(RuntimeError, match="bn1.* of the frozen trunk has changed"):
        train_and_test(start.encoder, (colours, colours), LINEAR, HOW)


def test_fine_tuning_moves_the_trunk_and_not_the_head(
    start: Start, colours: data.ImageList
) -> None:
    before = copy(start.encoder)
    got = train_and_test(start.encoder, (colours, colours), FINETUNE, HOW)
    after = copy(start.encoder)
    assert got.top1 == 100.0
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"trunk.conv1.weight", "trunk.bn1.weight", "trunk.bn2.running_mean"} <= moved
    assert not any(name.startswith("head.") for name in moved)


def test_one_step_is_that_of_the_formula(start: Start, colours: data.ImageList) -> None:
    """W becomes W - lr * gradient of the mean cross-entropy, over frozen features."""
    options = replace(LINEAR, epochs=1, milestones=[], lr=30.0)
    model = Classifier(start.encoder, classes=2, frozen=True, seed=3)
    weight, bias = model.fc.weight.detach().clone(), model.fc.bias.detach().clone()
    recipe = augment.recipe("crop_flip", min_scale=0.5)
    views = data.ViewSet(colours, data.ViewSpec(recipe, size=32, views=1, seed=5))
    (keys,) = list(data.Order(24, 24, seed=5, start=0, stop=1))
    samples = [views[key] for key in keys]
    pixels = augment.normalise(torch.from_numpy(np.concatenate([s[0] for s in samples])))
    labels = torch.tensor([s[2] for s in samples])
    start.encoder.eval()
    with torch.no_grad():
        features = start.encoder.features(pixels)
        error = F.softmax(features @ weight.t() + bias, dim=1) - F.one_hot(labels, 2)
        expected = weight - 30.0 * error.t() @ features / 24
    classifier.fit(model, colours, options, Conditions(size=32, batch=24, seed=5))
    torch.testing.assert_close(model.fc.weight.detach(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.fc.bias.detach(), bias - 30.0 * error.mean(0))


def test_the_paper_s_schedule() -> None:
    tuned, paper = FinetuneOptions(), LinearOptions()
    assert (*tuned.rates(), tuned.weight_decay, tuned.drops()) == (0.03, 0.03, 1e-4, [70, 90])
    assert (*paper.rates(), paper.weight_decay, paper.drops()) == (0.0, 30.0, 0.0, [60, 80])
    assert (paper.batch, paper.epochs) == (256, 100)
    assert replace(paper, epochs=10).drops() == [6, 8]
    factors = [paper.factor(epoch * 10, 10) for epoch in (0, 59, 60, 79, 80, 99)]
    assert factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    cosine = replace(paper, schedule="cosine")
    assert [cosine.factor(s, 10) for s in (0, 500, 1000)] == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"epochs": 0}, "--epochs is 0: it must be at least 1"),
        ({"lr": math.nan}, "--lr is nan: it must be at least 0"),
        ({"lr": math.inf}, "--lr is inf"),
        ({"momentum": -0.1}, "--momentum is -0.1: it must be at least 0"),
        ({"min_scale": 0.0}, "--min-scale is 0.0: it must be from 0.001 to 1"),
        ({"min_scale": 1.5}, "--min-scale is 1.5: it must be from 0.001 to 1"),
        ({"milestones": [100]}, "--milestones 100 is never reached in --epochs 100"),
    ],
)
def test_schedules_without_meaning_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(LinearOptions(), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [LINEAR, replace(FINETUNE, head_lr=1e38)])
def test_a_diverging_classifier_is_one_line(
    start: Start, colours: data.ImageList, options: LinearOptions
) -> None:
    with torch.no_grad():
        start.encoder.trunk.bn2.weight.mul_(1e4)
    with pytest.raises(InputError, match="not finite at step [0-9]+: lower --lr") as caught:
        train_and_test(start.encoder, (colours, colours), replace(options, lr=1e38), HOW)
    assert "\n" not in str(caught.value)


def test_an_image_that_does_not_open_stops_training(start: Start, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "0.png"), np.zeros((40, 40, 3), np.uint8))
    (tmp_path / "b" / "1.png").write_bytes(b"no image")
    images = data.list_images(str(tmp_path))
    with pytest.raises(InputError, match=r"image .*b/1\.png"):
        train_and_test(start.encoder, (images, images), LINEAR, replace(HOW, batch=3))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("options", [LINEAR, FINETUNE])
def test_a_stopped_probe_goes_on_to_the_same_end(
    colours: data.ImageList,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: LinearOptions,
) -> None:
    monkeypatch.setitem(encoders.ARCHITECTURES, "small", SmallTrunk)
    monkeypatch.setattr(classifier, "SAVE_SECONDS", -1.0)  # after each step
    options = replace(options, epochs=2, milestones=[1])  # six steps

    def run(saving: Saving | None) -> dict[str, torch.Tensor]:
        encoder = random_start("small", seed=0).encoder
        model = Classifier(encoder, classes=2, frozen=options.frozen, seed=0)
        classifier.fit(model, colours, options, replace(HOW, seed=1), saving)
        return copy(model)

    whole = run(None)
    saving = Saving(tmp_path / "run" / "probe.pth", False, "origin")
    save = Saving.write

    def save_and_stop(*args: Any, **state: Any) -> None:
        save(*args, **state)
        if state["step"] == 4:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Saving, "write", save_and_stop)
        with pytest.raises(Stopped):
            run(saving)
    with pytest.raises(InputError, match="is there already: continue it with --resume"):
        run(saving)
    with pytest.raises(InputError, match="the probed weights differ"):
        run(replace(saving, resume=True, origin="another"))
    assert same(run(replace(saving, resume=True)), whole)
    # At its end already: nothing is trained again.
    assert same(run(replace(saving, resume=True)), whole)


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_a_damaged_checkpoint_of_a_probe_is_named(
    start: Start, colours: data.ImageList, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "probe.pth"
    if content is None:
        torch.save({"format": "moco-det/1"}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match="probe.pth is no.*another --output"):
        saving = Saving(path, True, "origin")
        train_and_test(start.encoder, (colours, colours), LINEAR, HOW, saving)
