"""Held to real detectron2 on every machine, by files made from it once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tests.golden
from moco_det.standalone.build import build_detector
from tests.golden.filling import fill, images
from tests.golden.settings import ARCHITECTURES, PARITY, our_config
from tests.standalone.targets import targets_of

GOLDEN = Path(str(tests.golden.__file__)).parent


@pytest.mark.parametrize("title", ARCHITECTURES)
def test_tensors_have_detectron2s_names_shapes_and_order(title: str) -> None:
    tables = json.loads((GOLDEN / "state_dict_names.json").read_text())
    assert set(tables) == set(ARCHITECTURES)
    with torch.device("meta"):
        model = build_detector(our_config(ARCHITECTURES[title]))
    found = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(found) > 150
    assert found == tables[title]
    assert list(found) == list(tables[title])


@pytest.mark.parametrize("title", PARITY)
def test_losses_and_detections_are_detectron2s(title: str) -> None:
    stored = dict(np.load(GOLDEN / "parity.npz"))
    assert {name.split("/")[0] for name in stored} == set(PARITY)
    golden = {name.split("/")[1]: a for name, a in stored.items() if name.startswith(f"{title}/")}
    model = build_detector(our_config(PARITY[title]))
    fill(model)
    with torch.no_grad():
        detections = model.eval()(images())
    for number, found in enumerate(detections):
        arrays = {"boxes": found.boxes, "scores": found.scores, "classes": found.classes}
        if found.masks is not None:
            arrays["mask_sums"] = found.masks.sum(dim=(1, 2))
        assert len(found.boxes) == 20
        for name, array in arrays.items():
            expected = golden.pop(f"{name}_{number}")
            np.testing.assert_allclose(array.numpy(), expected, rtol=1e-4, atol=1e-4, err_msg=name)
    losses = model.train()(images(), targets_of())
    assert set(losses) == set(golden)  # nothing stored is left unchecked
    for name, loss in losses.items():
        np.testing.assert_allclose(loss.item(), golden[name], rtol=1e-4, err_msg=name)
