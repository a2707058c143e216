"""The proof of a conversion of timm's networks: it refuses whatever tensor is not what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("timm")

from moco_det.foundation.errors import InputError
from moco_det.weights import timm_proof
from moco_det.weights.convert import convert
from moco_det.weights.timm_checkpoint import TimmCheckpoint, read_any
from moco_det.weights.timm_proof import TimmProof, converted, perturbed, read_backbone
from tests.weights.timm_files import SMALL, save, trained


@pytest.mark.parametrize("name", SMALL)
def test_every_single_tensor_that_is_zeroed_or_dropped_is_refused(
    name: str, tmp_path: Path
) -> None:
    # as timm initialises: LayerScales of 1e-6, biases of 0
    state = timm_proof.import_timm().create_model(name).state_dict()
    source = read_any(save({"arch": name, "state_dict": state}, tmp_path / "a.pth"))
    assert isinstance(source, TimmCheckpoint)
    read = read_backbone(source)
    proof = TimmProof(source, read)
    right = converted(read.backbone, read.places, proof.tensors)
    proof.load(read.backbone, {name: tensor.clone() for name, tensor in right.items()})
    there = {k: t for k, t in read.backbone.network.state_dict().items() if t.is_floating_point()}
    assert len(there) > 60
    for name, tensor in there.items():
        tensor.zero_()
        with pytest.raises(InputError, match="differs from timm's at (res|quarter|last)"):
            proof.differences(read.backbone)
        tensor.copy_(right[name])
        with pytest.raises(InputError, match=f"nothing was converted to {name}"):
            proof.load(read.backbone, {n: t for n, t in right.items() if n != name})
    assert set(proof.differences(read.backbone).values()) == {0.0}


@pytest.mark.parametrize("fault", ["zeroed", "dropped", "swapped"])
def test_a_conversion_with_a_fault_writes_nothing(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (f"stages.3.blocks.{block}.gamma" for block in (0, 1))

    def faulty(*arguments: object) -> dict[str, torch.Tensor]:
        right = converted(*arguments)  # type: ignore[arg-type]
        if fault == "dropped":
            del right[first]
        elif fault == "zeroed":
            right[first] = torch.zeros_like(right[first])
        else:
            right[first], right[second] = right[second], right[first]
        return right

    monkeypatch.setattr(timm_proof, "converted", faulty)
    file = save({"arch": "test_convnext", "model": trained("test_convnext")}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="nothing was (written|converted)"):
        convert(file, tmp_path / "a.pkl")
    assert not (tmp_path / "a.pkl").exists()


def test_perturbing_leaves_no_tensor_small_and_no_variance_at_zero() -> None:
    tensors = {
        "gamma": torch.full((512,), 1e-6),
        "bias": torch.zeros(512),
        "weight": torch.full((64, 9, 3, 3), 1e4),
        "bn.running_var": torch.full((512,), 1e-12),
        "bn.num_batches_tracked": torch.tensor(7),
    }
    once, again = perturbed(tensors), perturbed(tensors)
    assert all(torch.equal(once[name], again[name]) for name in tensors)
    for name in ("gamma", "bias"):
        assert 0.4 < once[name].std() < 0.6
    assert once["gamma"].mean() > 0.4  # its own pattern is still there
    assert 0.05 < once["weight"].std() < 0.15 and once["bn.running_var"].min() >= 0.5
    assert once["bn.num_batches_tracked"] == 7
