"""Files that a user names: regular, of a size that can be meant, told in one line otherwise."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from moco_det.data.image import image_size, read_image
from moco_det.foundation import reading
from moco_det.foundation.checkpoints import load_checkpoint
from moco_det.foundation.errors import InputError, one_line
from moco_det.foundation.folders import shared
from moco_det.foundation.strict_yaml import load_mapping, load_yaml, nest, parse_value
from pretrain import images
from pretrain.data.listing import list_images
from pretrain.data.shard_files import list_shards


def odd_files(folder: Path) -> dict[str, str]:
    """Names of what is no file that can be read, and what is said of each."""
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "gone")
    (folder / "zero").symlink_to("/dev/zero")
    with open(folder / "huge", "wb") as file:
        file.truncate(reading.MOST_DATA + 1)
    return {
        str(folder / "pipe"): "it is not a regular file",
        str(folder / "zero"): "it is not a regular file",
        str(folder): "it is a directory",
        str(folder / "loop"): "Too many levels",
        str(folder / "dangling"): "does not exist",
        str(folder / ("n" * 5000)): "name too long",
        str(folder / "a\0b"): "embedded null",
        str(folder / "huge"): "more than the",
    }


def test_what_is_no_readable_file_is_one_line_and_never_waited_for(tmp_path: Path) -> None:
    for path, said in odd_files(tmp_path).items():
        with pytest.raises(InputError, match=said) as caught:
            reading.read_text(path, "list")
        assert "\n" not in str(caught.value) and "\0" not in str(caught.value)
        with pytest.raises(InputError, match="is no whole checkpoint|does not exist"):
            load_checkpoint(Path(path))
        with pytest.raises(InputError, match="does not open|does not exist"):
            read_image(path)
        with pytest.raises(images.CorruptImage):
            images.read_image(path)
        (tmp_path / "c.yaml").write_text(f'_BASE_: "{path}"'.replace("\0", "\\0"), "utf-8")
        with pytest.raises(InputError, match=said):
            load_yaml(tmp_path / "c.yaml")


def test_utf16_and_windows_lines_are_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Ä\r\nb".encode("utf-16"))
    assert reading.read_text(tmp_path / "a.txt", "list") == "Ä\nb"


def test_one_limit_of_pixels_holds_on_every_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "a.png")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
    monkeypatch.setenv(reading.PIXELS_VARIABLE, "600")
    assert image_size(path) == (20, 30) and images.read_image(path).shape == (20, 30, 3)
    monkeypatch.setenv(reading.PIXELS_VARIABLE, "599")
    said = "30 x 20 pixels are more than the 599 allowed.*MOCO_DET_MAX_PIXELS"
    for read in (read_image, image_size):
        with pytest.raises(InputError, match=said):
            read(path)
    with pytest.raises(images.CorruptImage, match=said):
        images.read_image(path)
    monkeypatch.setenv(reading.PIXELS_VARIABLE, "many")
    with pytest.raises(InputError, match="MOCO_DET_MAX_PIXELS is 'many'"):
        read_image(path)


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth")["a"].shape == (10**6,)
    whole = zipfile.ZipFile(tmp_path / "a.pth")
    with whole, zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(InputError, match="would unpack to more than it holds"):
        load_checkpoint(tmp_path / "b.pth")


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "more than 200,000 values up to line"),
        ("a: &a [*a]", r"\*a in line 1 holds itself"),
        ("a: &a\n  b: *a", r"\*a in line 2 holds itself"),
        ("a: " + "[" * 60 + "]" * 60, "line 1 is nested more than 50 deep"),
        ("a: " + "[" * 200_000, "valid yaml|nested"),
        ("a: &a {b: 1}\nc:\n  <<: *a", "<< in line 3 is a merge key, .*: write its keys out, or"),
        ("b: 1\na: 2020-99-99", "the value in line 2 is no timestamp"),
        ("a: " + "9" * 5000, "the value in line 1 is no int"),
        ("a: 0x" + "f" * 5000, "the value in line 1 is no int"),
        ("a: !!int abc", "the value in line 1 is no int"),
        ("a: !!bool maybe", "the value in line 1 is no bool"),
        ("a: !!timestamp x", "the value in line 1 is no timestamp"),
        ("a: !!map [1]", "expected a mapping"),
        ("a: !!python/object:os.system x", "constructor"),
        ("? [1]\n: 2", "key in line 1 is a list"),
        ('a: "\0"', "not valid yaml"),
        ('a: "\ud800"', "not valid yaml"),
        ("a: '" + "x" * 3_000_000 + "'", "longer than"),
    ],
)
def test_odd_yaml_is_one_error_that_names_the_file(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_mapping(text, "c.yaml")
    assert str(caught.value).startswith("c.yaml")


def test_aliases_of_ordinary_size_are_read() -> None:
    assert load_mapping("a: &a [1, 2]\nb: [*a, *a]", "c.yaml")["b"] == [[1, 2], [1, 2]]


def test_a_long_chain_of_bases_is_refused(tmp_path: Path) -> None:
    for i in range(100):
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: {i + 1}.yaml", "utf-8")
    with pytest.raises(InputError, match="more than 20 files"):
        load_yaml(tmp_path / "0.yaml")


def test_a_typed_number_that_cannot_be_shown_stays_text() -> None:
    text = "0x" + "f" * 5000
    assert parse_value(text) == text


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("{0..999999999}.tar", "1,000,000,000"),
        ("{1,2}" * 40 + ".tar", "1,099,511,627,776"),
        ("{1,2}" * 20_000, "1,000,000,000,000,000,000"),
    ],
)
def test_a_pattern_of_a_billion_shards_is_counted_not_written_out(pattern: str, count: str) -> None:
    with pytest.raises(InputError, match=f"names {count} shards"):
        list_shards(pattern)


def test_links_that_loop_in_a_folder_of_images_do_not_hide_the_others(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    for name in ("loop.yaml", "loop.png"):
        (tmp_path / name).symlink_to(tmp_path / name)
    assert [Path(p).name for p in list_images(str(tmp_path)).paths] == ["a.png", "loop.png"]


def test_a_tensor_larger_than_what_its_file_holds_is_refused_before_it_is_computed_with(
    tmp_path: Path,
) -> None:
    huge = torch.zeros(1).expand(10**9)
    torch.save({"state": [{"a": (torch.ones(3), huge)}]}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="unpack to more than it holds"):
        load_checkpoint(tmp_path / "a.pth")
    base = torch.arange(6.0)
    torch.save({"view": base[2:4], "whole": base}, tmp_path / "b.pth")
    assert load_checkpoint(tmp_path / "b.pth")["view"].tolist() == [2, 3]


def test_a_name_as_long_as_its_file_leaves_room_for_the_way_out() -> None:
    line = one_line(InputError(f"no image {'x' * 10**6}: check its name"))
    assert line.startswith("no image xxx") and line.endswith("xxx: check its name")
    assert len(line) < 2100


def test_a_lock_that_is_a_folder_is_one_line_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a" / ".claim").mkdir(parents=True)
    with pytest.raises(InputError, match="cannot write .*claim"), shared(tmp_path / "a"):
        pass
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / ".claim")
    with shared(tmp_path / "b"):
        pass


def test_a_key_with_a_value_and_keys_below_it_is_named() -> None:
    with pytest.raises(InputError, match="MOCO.M.X: M has a value, 0.9, and keys below it"):
        nest({"MOCO.M": 0.9, "MOCO.M.X": 3})
