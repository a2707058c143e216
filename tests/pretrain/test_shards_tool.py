"""moco-det make-shards: images to shards, and the index of shards."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from moco_det_tools import make_shards
from moco_det_tools.entry import run
from pretrain import data
from pretrain.data.shard_files import list_shards, read_shard

from .conftest import write_images
from .shard_builders import write_stream


def tool(*arguments: str) -> int:
    return run(lambda: make_shards.main(arguments))


def test_the_tool_turns_a_class_folder_into_shards(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "two"):
        assert tool(str(class_folders), "--output", str(tmp_path / folder), "--seed", "3") == 0
    path = capsys.readouterr().out.splitlines()[0]
    assert path == str(tmp_path / "one" / "images-{000000..000000}.tar")
    files = [sorted((tmp_path / folder).iterdir()) for folder in ("one", "two")]
    assert [f.name for f in files[0]] == ["images-000000.tar", "shards.json"]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]

    listed = data.list_images(str(class_folders))
    assert listed.labels is not None and list_shards(path).classes == ["cat", "dog"]
    (url,) = list_shards(path).urls
    numbers = []
    for sample in read_shard(url):
        i = int(sample.name.rpartition(":")[2])
        assert sample.data == Path(listed.paths[i]).read_bytes()
        assert sample.cls == str(listed.labels[i]).encode()
        numbers.append(i)
    assert sorted(numbers) == list(range(24)) and numbers != sorted(numbers)


def test_shards_are_closed_at_their_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(5):
        noise = rng.integers(0, 256, (480, 480, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.png"), noise)  # 0.7 MB, does not compress
    out = tmp_path / "out"
    assert tool(str(tmp_path / "photos"), "--output", str(out), "--shard-mb", "1") == 0
    counts = json.loads((out / "shards.json").read_text())
    assert counts == {"shards": {f"images-00000{i}.tar": n for i, n in enumerate((2, 2, 1))}}


def test_the_tool_counts_shards_of_others(tmp_path: Path) -> None:
    path = write_stream(tmp_path, [4, 7])
    assert tool("--index", path) == 0
    assert (list_shards(path).images, list_shards(path).classes) == (11, None)


def test_the_tool_counts_anew_and_keeps_classes_and_other_shards(tmp_path: Path) -> None:
    path = write_stream(tmp_path, [4, 7], index=True)
    index = json.loads((tmp_path / "shards.json").read_text())
    wrong = {**index, "shards": {**index["shards"], "x-00.tar": 99}}
    (tmp_path / "shards.json").write_text(json.dumps(wrong))
    assert tool("--index", str(tmp_path / "x-00.tar")) == 0
    assert json.loads((tmp_path / "shards.json").read_text()) == index
    assert list_shards(path).images == 11


def test_the_tool_leaves_nothing_behind_where_it_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "photos", 2)
    listed, out = tmp_path / "photos" / "list.txt", tmp_path / "out"
    listed.write_text("000.jpg\nx.gif\n")
    assert tool(str(listed), "--output", str(out)) == 2
    assert "x.gif: shards hold jpg" in capsys.readouterr().err
    (tmp_path / "photos" / "x.jpg").symlink_to(tmp_path / "gone")
    assert tool(str(tmp_path / "photos"), "--output", str(out)) == 2
    assert "x.jpg: No such file" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]
    (out / "mine").mkdir(parents=True)
    assert tool(str(tmp_path / "photos"), "--output", str(out)) == 2
    assert tool("--index", str(tmp_path / "x.tar")) == 2
