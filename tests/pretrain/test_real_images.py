from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from pretrain.config import load_config
from pretrain.train import train

QUICK = Path(__file__).resolve().parents[2] / "configs" / "pretrain" / "quick"


@pytest.mark.parametrize("name", ["moco_v2_r18", "supervised_r18"])
def test_both_quick_arms_run_on_real_photos(
    name: str, data_root: Path, tiny: list[str], tmp_path: Path
) -> None:
    archive = data_root / "pretrain" / "caltech101_96.zip"
    if not archive.is_file():
        pytest.skip(f"no {archive}")
    with zipfile.ZipFile(archive) as photos:
        names = [n for n in photos.namelist() if n.startswith(("train/000/", "train/001/"))]
        photos.extractall(tmp_path, names[:40] + names[-40:])
    pairs = ["DATA.PATH", str(tmp_path / "train"), "SOLVER.MAX_ITER", "2"]
    path = train(load_config(QUICK / f"{name}.yaml", [*tiny, *pairs]))
    (row,) = map(json.loads, (path.parent / "metrics.jsonl").read_text().splitlines())
    assert row["iteration"] == 2 and row["feature_std"] > 0
