"""A ResNet trunk with one linear layer for classes, trained by SGD on random crops.

The linear probe and fine-tuning are this with the trunk frozen or free.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from moco_det.foundation.atomic import make_folder
from moco_det.foundation.checkpoints import save_checkpoint
from moco_det.foundation.errors import InputError
from pretrain import augment, checkpoints, data
from pretrain.encoders import Encoder
from pretrain.probe.features import TOP, Accuracy, Pair, centre_views, evaluating, labels_of, score
from pretrain.probe.options import Conditions, LinearOptions

FORMAT = "moco-det/probe-1"
SAVE_SECONDS = 300.0  # between two checkpoints
CHECK_EVERY = 20  # steps between two looks at the loss: a look waits for the GPU


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


@dataclass(frozen=True)
class Saving:
    """Where a classifier in training is kept, and whether to go on from there."""

    path: Path
    resume: bool
    origin: str  # what was probed: a file's sha256, or a seed

    def read(self, about: Mapping[str, Any]) -> dict[str, Any] | None:
        """What is to be continued; InputError where it is not of this training."""
        make_folder(self.path.parent)
        if not self.path.is_file():
            return None
        if not self.resume:
            raise InputError(
                f"{self.path} is there already: continue it with --resume, or name another --output"
            )
        way_out = "; remove it to start again, or name another --output"
        content = checkpoints.read(self.path, FORMAT, way_out=way_out)
        changed = [key for key, value in about.items() if content["about"].get(key) != value]
        if content["origin"] != self.origin:
            changed.insert(0, "the probed weights")
        if changed:
            raise InputError(
                f"{self.path} was trained otherwise ({', '.join(changed)} differ): name another "
                "--output"
            )
        return content

    def write(self, about: Mapping[str, Any], **state: Any) -> None:
        """What a training `about` this has come to."""
        content = {"format": FORMAT, "origin": self.origin, "about": dict(about), **state}
        save_checkpoint(content, self.path)


def train_and_test(
    encoder: Encoder,
    pair: Pair,
    options: LinearOptions,
    how: Conditions,
    saving: Saving | None = None,
) -> Accuracy:
    """Train the linear layer, and a trunk that is not frozen, on the encoder's device.

    The test is of one central crop per image. Batch norm of a free trunk learns with the batch's
    statistics. Raises InputError where the loss is not finite, RuntimeError where a frozen trunk is
    not bit for bit what it was.
    """
    device = next(encoder.parameters()).device
    train, test = pair
    classes, frozen = len(train.classes), options.frozen
    classifier = Classifier(encoder, classes=classes, frozen=frozen, seed=how.seed).to(device)
    before = {name: value.clone() for name, value in encoder.trunk.state_dict().items()}
    fit(classifier, train, options, how, saving)
    for name, value in encoder.trunk.state_dict().items():
        if frozen and not torch.equal(value, before[name]):
            raise RuntimeError(f"{name} of the frozen trunk has changed")
    return evaluate(classifier, test, how)


def fit(
    classifier: Classifier,
    images: data.ImageList,
    options: LinearOptions,
    how: Conditions,
    saving: Saving | None = None,
) -> None:
    """Train in place, with time left on the screen; a checkpoint every five minutes and at the end.

    The crops and their order depend on the seed and the step alone. Raises InputError for an image
    that does not open and for a loss that is not finite.
    """
    steps = data.steps_per_epoch(len(images), how.batch)
    total, start = steps * options.epochs, 0
    lr, head_lr = options.rates()
    # `base` is what the schedule's factor multiplies
    groups = [{"params": list(classifier.fc.parameters()), "base": head_lr}]
    if not classifier.frozen:
        groups.append({"params": list(classifier.encoder.trunk.parameters()), "base": lr})
    optimizer = torch.optim.SGD(
        groups, lr=head_lr, momentum=options.momentum, weight_decay=options.weight_decay
    )
    about = {**options.settings(how.batch), "size": how.size, "seed": how.seed}
    about |= {"images": len(images), "frozen": classifier.frozen}
    if saving is not None and (found := saving.read(about)) is not None:
        classifier.load_state_dict(found["classifier"])
        optimizer.load_state_dict(found["optimizer"])
        start = int(found["step"])
    device = classifier.fc.weight.device
    recipe = augment.recipe("crop_flip", min_scale=options.min_scale)
    spec = data.ViewSpec(recipe, size=how.size, views=1, seed=how.seed)
    strict = data.CorruptCount(len(images), strict=True, way_out="fix or remove it")
    source = data.listed_source(images, spec, strict, cache_mb=options.cache_mb)
    pin = device.type == "cuda"
    loader = source.make_loader(
        batch=how.batch, start=start, stop=total, workers=options.workers, pin=pin
    )
    classifier.train()
    saved = time.monotonic()
    name = "linear probe" if classifier.frozen else "fine-tuning"
    with tqdm(total=total, initial=start, desc=name, unit="step", mininterval=1) as bar:
        for step, raw in enumerate(loader, start):
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * options.factor(step, steps)
            pixels = augment.normalise(raw.pixels[:, 0].to(device, non_blocking=True))
            labels = raw.labels.to(device, non_blocking=True)
            loss = F.cross_entropy(classifier(pixels, bfloat16=how.bfloat16), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.update()
            due = saving is not None and time.monotonic() - saved > SAVE_SECONDS
            if due or step % CHECK_EVERY == 0 or step + 1 == total:
                _check_finite(classifier, loss, step)
                bar.set_postfix(epoch=step // steps, loss=f"{loss.item():.3f}", refresh=False)
            if saving is not None and (due or step + 1 == total):
                trained, momenta = classifier.state_dict(), optimizer.state_dict()
                saving.write(about, step=step + 1, classifier=trained, optimizer=momenta)
                saved = time.monotonic()


def evaluate(classifier: Classifier, images: data.ImageList, how: Conditions) -> Accuracy:
    """Accuracy on the central views of a labelled list."""
    device = classifier.fc.weight.device
    classes = classifier.fc.out_features
    ranked = []
    with evaluating(classifier):
        for part in centre_views(images, size=how.size, batch=how.batch, what="testing"):
            scores = classifier(augment.normalise(part.to(device)), bfloat16=how.bfloat16)
            ranked.append(scores.topk(min(TOP, classes), dim=1).indices.cpu())
    return score(torch.cat(ranked), labels_of(images), classes=classes)


def _check_finite(classifier: Classifier, loss: Tensor, step: int) -> None:
    # The loss is of before the step: the weights say what the step has made of them.
    if not bool(torch.isfinite(loss) & torch.isfinite(classifier.fc.weight).all()):
        rate = "--lr" if classifier.frozen else "--lr or --head-lr"
        raise InputError(f"the classifier is not finite at step {step}: lower {rate}")
