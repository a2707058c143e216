"""What a step computes stays on the device: no number is read from it and no tensor sent to it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain import augment, device_views
from pretrain.build import build_method
from pretrain.config import load_config
from pretrain.methods.base import Batch
from tests.pretrain.test_resume import EVERY, QUICK

# Tensors of the meta device hold no numbers: reading one raises.
META = torch.device("meta")
INDEX_PUT = torch.ops.aten.index_put_.default


class OnlyOnMeta(TorchDispatchMode):
    """Fails on an operation that takes or makes a tensor of another device.

    `tensor[indices] = number` is one: on a GPU the number becomes a tensor of the CPU first.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        assert func is not INDEX_PUT or args[2].dim() > 0, "a number is assigned to an index"
        for leaf in tree_leaves((args, kwargs, result)):
            assert not isinstance(leaf, Tensor) or leaf.device == META, func
        return result


@pytest.mark.parametrize("method", EVERY)
def test_a_step_reads_no_number_from_the_device_and_sends_no_tensor_to_it(
    method: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    # NCE reads its Z once, before the first step that the bank's rows can tell it in.
    cfg = load_config(QUICK, [*tiny, *EVERY[method], "INST_DISC.Z", "20.0"])
    model = build_method(cfg, images=24, classes=3, bfloat16=False).to(META).train()
    assert model.settled
    pixels = torch.zeros(8, model.views, 32, 32, 3, dtype=torch.uint8, device=META)
    numbers = torch.zeros(8, dtype=torch.long, device=META)
    augment.normalise(pixels[:, 0])  # sends mean and std of this width, once
    with OnlyOnMeta():
        views = tuple(augment.normalise(view) for view in pixels.unbind(dim=1))
        batch = Batch(views, numbers, numbers)
        outcome = model(batch, model.prepare(batch))
        outcome.loss.backward()
        model.after_step(batch.indices, outcome.features)


@pytest.mark.parametrize("recipe", list(augment.RECIPES))
def test_making_views_reads_no_number_from_the_device_and_sends_no_tensor_to_it(
    recipe: str,
) -> None:
    maker = device_views.ViewMaker(augment.RECIPES[recipe], size=32, side=40, device=META)
    images = torch.zeros(8, 40, 3, 40, dtype=torch.uint8, device=META)
    rows = torch.zeros(8, 2, device_views.COLUMNS, device=META)
    with OnlyOnMeta():
        assert maker(images, rows).shape == (8, 2, 32, 32, 3)
