"""A ResNet trunk with one linear layer for classes, trained by SGD on random crops.

The linear probe and fine-tuning are this with the trunk frozen or free.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from moco_det.foundation.errors import InputError
from pretrain import augment, checkpoints, data
from pretrain.encoders import Encoder
from pretrain.probe.accuracy import TOP, Accuracy, score
from pretrain.probe.features import centre_views, evaluating

FORMAT = "moco-det/probe-1"
SAVE_SECONDS = 300.0  # between two checkpoints
CHECK_EVERY = 20  # steps between two looks at the loss: a look waits for the GPU


@dataclass(frozen=True)
class Schedule:
    """How a classifier is trained: SGD with momentum over random crops and flips.

    `milestones` are in epochs, for the step schedule; `lr` is the trunk's rate and `head_lr` the
    linear layer's. A batch that does not fill at an epoch's end is left out.
    """

    epochs: int
    batch: int
    lr: float
    head_lr: float
    momentum: float
    weight_decay: float
    schedule: str  # step | cosine
    milestones: tuple[int, ...]
    gamma: float
    min_scale: float  # smallest area of a crop, as a share of the image

    def check(self) -> None:
        """Raise InputError for what cannot be meant."""
        positive = {"epochs": self.epochs, "batch": self.batch, "min-scale": self.min_scale}
        for name, value in positive.items():
            if value <= 0:
                raise InputError(f"--{name} is {value:g}: it must be above 0")
        low = {"lr": self.lr, "head-lr": self.head_lr, "momentum": self.momentum,
               "weight-decay": self.weight_decay, "gamma": self.gamma}  # fmt: skip
        for name, value in low.items():
            if not 0 <= value < math.inf:
                raise InputError(f"--{name} is {value:g}: it must be a number from 0 on")
        if self.min_scale > 1:
            raise InputError(f"--min-scale is {self.min_scale:g}: a crop's share is at most 1")
        if self.schedule not in ("step", "cosine"):
            raise InputError(f"--schedule is {self.schedule!r}: choose step or cosine")
        late = [epoch for epoch in self.milestones if epoch >= self.epochs]
        if self.schedule == "step" and late:
            raise InputError(
                f"--milestones {late[0]} is never reached in --epochs {self.epochs}: name epochs "
                "below that"
            )

    def factor(self, step: int, steps: int) -> float:
        """What the base rates are multiplied by in a step, `steps` being those of an epoch."""
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / (steps * self.epochs)))
        return self.gamma ** sum(step // steps >= epoch for epoch in self.milestones)


class Classifier(nn.Module):
    """`trunk` gives pooled features, `fc` class scores; a frozen trunk stays in eval mode."""

    def __init__(self, encoder: Encoder, *, classes: int, frozen: bool, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.frozen = frozen
        self.fc = nn.Linear(encoder.width, classes)
        # As the released MoCo code starts its linear layer.
        rng = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.fc.weight, std=0.01, generator=rng)
        nn.init.zeros_(self.fc.bias)
        encoder.head.requires_grad_(False)
        encoder.trunk.requires_grad_(not frozen)

    def train(self, mode: bool = True) -> Classifier:
        """As any module's, but a frozen trunk keeps its running statistics."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor, *, bfloat16: bool = False) -> Tensor:
        """Scores [N, classes] of normalised images [N, 3, S, S], in float32."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder.features(images, bfloat16=bfloat16)
        return self.fc(features)

    def groups(self, schedule: Schedule) -> list[dict[str, Any]]:
        """The optimizer's parameter groups; `base` is what a schedule's factor multiplies."""
        groups = [{"params": list(self.fc.parameters()), "base": schedule.head_lr}]
        if not self.frozen:
            trunk = list(self.encoder.trunk.parameters())
            groups.append({"params": trunk, "base": schedule.lr})
        return groups


@dataclass(frozen=True)
class Saving:
    """Where a classifier in training is kept, and whether to go on from there."""

    path: Path
    resume: bool
    origin: str  # what was probed: a file's sha256, or a seed


def fit(
    classifier: Classifier,
    images: data.ImageList,
    schedule: Schedule,
    *,
    size: int,
    seed: int,
    workers: int,
    bfloat16: bool,
    cache_mb: int,
    saving: Saving | None,
) -> None:
    """Train in place, with time left on the screen; a checkpoint every five minutes and at the end.

    The crops and their order depend on `seed` and the step alone. Raises InputError for an image
    that does not open and for a loss that is not finite.
    """
    schedule.check()
    steps = data.steps_per_epoch(len(images), schedule.batch)
    total = steps * schedule.epochs
    optimizer = torch.optim.SGD(
        classifier.groups(schedule),
        lr=schedule.head_lr,
        momentum=schedule.momentum,
        weight_decay=schedule.weight_decay,
    )
    about = {**asdict(schedule), "milestones": list(schedule.milestones), "size": size,
             "seed": seed, "images": len(images), "frozen": classifier.frozen}  # fmt: skip
    start = _restore(saving, about, classifier, optimizer)
    device = classifier.fc.weight.device
    loader = _loader(images, schedule, size=size, seed=seed, start=start, stop=total,
                     workers=workers, cache_mb=cache_mb, pin=device.type == "cuda")  # fmt: skip
    classifier.train()
    saved = time.monotonic()
    name = "linear probe" if classifier.frozen else "fine-tuning"
    with tqdm(total=total, initial=start, desc=name, unit="step", mininterval=1) as bar:
        for step, raw in enumerate(loader, start):
            if raw.bad:
                path, reason = raw.bad[0]
                raise InputError(f"image {path}: {reason}; mend or remove it")
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * schedule.factor(step, steps)
            pixels = augment.normalise(raw.pixels[:, 0].to(device, non_blocking=True))
            labels = raw.labels.to(device, non_blocking=True)
            loss = F.cross_entropy(classifier(pixels, bfloat16=bfloat16), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.update()
            due = saving is not None and time.monotonic() - saved > SAVE_SECONDS
            if due or step % CHECK_EVERY == 0 or step + 1 == total:
                _check_finite(classifier, loss, step)
                bar.set_postfix(epoch=step // steps, loss=f"{loss.item():.3f}", refresh=False)
            if saving is not None and (due or step + 1 == total):
                _save(saving, about, classifier, optimizer, step + 1)
                saved = time.monotonic()


def _loader(
    images: data.ImageList,
    schedule: Schedule,
    *,
    size: int,
    seed: int,
    start: int,
    stop: int,
    workers: int,
    cache_mb: int,
    pin: bool,
) -> data.BatchLoader:
    cache = None
    if cache_mb > 0:
        strict = data.CorruptCount(len(images), max_share=0.0, strict=True)
        cache = data.cache_images(images, budget_mb=cache_mb, shorter_side=0, corrupt=strict)
    recipe = augment.recipe("crop_flip", min_scale=schedule.min_scale)
    views = data.ViewSet(images, data.ViewSpec(recipe, size=size, views=1, seed=seed), cache)
    order = data.Order(len(images), schedule.batch, seed=seed, start=start, stop=stop)
    return data.make_loader(views, order, workers=workers, pin=pin)


def evaluate(
    classifier: Classifier, images: data.ImageList, *, size: int, batch: int, bfloat16: bool
) -> Accuracy:
    """Accuracy on the central views of a labelled list."""
    assert images.labels is not None
    device = classifier.fc.weight.device
    classes = classifier.fc.out_features
    ranked = []
    views = tqdm(
        centre_views(images, size=size, batch=batch),
        total=-(-len(images) // batch),
        desc="testing",
        unit="batch",
        mininterval=1,
        leave=False,
    )
    with evaluating(classifier):
        for part in views:
            scores = classifier(augment.normalise(part.to(device)), bfloat16=bfloat16)
            ranked.append(scores.topk(min(TOP, classes), dim=1).indices.cpu())
    return score(torch.cat(ranked), torch.from_numpy(images.labels), classes=classes)


def _check_finite(classifier: Classifier, loss: Tensor, step: int) -> None:
    # The loss is of before the step: the weights say what the step has made of them.
    if not bool(torch.isfinite(loss) & torch.isfinite(classifier.fc.weight).all()):
        rate = "--lr" if classifier.frozen else "--lr or --head-lr"
        raise InputError(f"the classifier is not finite at step {step}: lower {rate}")


def _save(
    saving: Saving,
    about: Mapping[str, Any],
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    step: int,
) -> None:
    content = {
        "format": FORMAT,
        "origin": saving.origin,
        "about": dict(about),
        "step": step,
        "classifier": classifier.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    checkpoints.save(content, saving.path)


def _restore(
    saving: Saving | None,
    about: Mapping[str, Any],
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Steps done already, 0 where nothing is to be continued."""
    if saving is None:
        return 0
    try:
        os.makedirs(saving.path.parent, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {saving.path}: {error.strerror}") from error
    if not saving.path.is_file():
        return 0
    if not saving.resume:
        raise InputError(
            f"{saving.path} is there already: continue it with --resume, or name another --output"
        )
    try:
        content = torch.load(saving.path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{saving.path} is not a whole checkpoint of a probe: remove it to start again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{saving.path} is not a checkpoint of a probe: name another --output")
    changed = [key for key, value in about.items() if content["about"].get(key) != value]
    if content["origin"] != saving.origin:
        changed.insert(0, "the probed weights")
    if changed:
        raise InputError(
            f"{saving.path} was trained otherwise ({', '.join(changed)} differ): name another "
            "--output"
        )
    classifier.load_state_dict(content["classifier"])
    optimizer.load_state_dict(content["optimizer"])
    return int(content["step"])
