"""Makes the golden files from real detectron2; needs it, and is run by hand:

    python -m tests.golden.make_golden

state_dict_names.json holds names, order and shapes of every tensor; parity.npz holds the losses
and detections of a small Mask R-CNN whose weights and inputs both engines make by themselves.
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
        title: {name: list(t.shape) for name, t in real_model(changes).state_dict().items()}
        for title, changes in ARCHITECTURES.items()
    }


def parity() -> dict[str, np.ndarray]:
    import torch

    from tests.golden.real import inputs_of, real_detections, real_losses, real_model

    model = real_model(PARITY)
    fill(model)
    arrays = {}
    for number, found in enumerate(real_detections(model, images())):
        arrays[f"boxes_{number}"] = found.pred_boxes.tensor.numpy()
        arrays[f"scores_{number}"] = found.scores.numpy()
        arrays[f"classes_{number}"] = found.pred_classes.numpy()
        arrays[f"mask_sums_{number}"] = found.pred_masks.sum(dim=(1, 2, 3)).numpy()
    torch.manual_seed(0)
    for name, loss in real_losses(model, inputs_of(images())).items():
        arrays[name] = loss.detach().numpy()
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
