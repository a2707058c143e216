"""Makes the golden files from real detectron2; needs it, and is run by hand:

    python -m tests.golden.make_golden

state_dict_names.json holds names, order and shapes of every tensor; parity.npz holds the losses
and detections of small detectors (FPN, C4 and dilated C5) whose weights and inputs both engines
make by themselves.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.golden.filling import fill, images
from tests.golden.settings import ARCHITECTURES, PARITY

pytestmark = pytest.mark.detectron2

HERE = Path(__file__).resolve().parent


def names() -> dict[str, dict[str, list[int]]]:
    from tests.golden.real import real_model

    return {
        title: {name: list(t.shape) for name, t in real_model(settings).state_dict().items()}
        for title, settings in ARCHITECTURES.items()
    }


def parity() -> dict[str, np.ndarray]:
    import torch

    from tests.golden.real import inputs_of, real_detections, real_losses, real_model

    arrays = {}
    for title, settings in PARITY.items():
        model = real_model(settings)
        fill(model)
        for number, found in enumerate(real_detections(model, images())):
            arrays[f"{title}/boxes_{number}"] = found.pred_boxes.tensor.numpy()
            arrays[f"{title}/scores_{number}"] = found.scores.numpy()
            arrays[f"{title}/classes_{number}"] = found.pred_classes.numpy()
            if found.has("pred_masks"):
                arrays[f"{title}/mask_sums_{number}"] = found.pred_masks.sum(dim=(1, 2, 3)).numpy()
        torch.manual_seed(0)
        inputs = inputs_of(images(), masks="MODEL.MASK_ON" in settings.changes)
        for name, loss in real_losses(model, inputs).items():
            arrays[f"{title}/{name}"] = loss.detach().numpy()
    return arrays


def as_text(tables: dict[str, dict[str, list[int]]]) -> str:
    """Json with one tensor a line, so that a change can be read in a diff."""
    parts = []
    for title, shapes in tables.items():
        rows = [f"  {json.dumps(name)}: {json.dumps(shape)}" for name, shape in shapes.items()]
        parts.append(f" {json.dumps(title)}: {{\n" + ",\n".join(rows) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    (HERE / "state_dict_names.json").write_text(as_text(names()), encoding="utf-8")
    arrays = parity()
    np.savez(HERE / "parity.npz", **arrays)  # type: ignore[arg-type]
    for name, array in arrays.items():
        print(name, array.shape, array if array.ndim == 0 else array.ravel()[:4])
