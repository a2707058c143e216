"""Reading: the same numbers as the usual readers, and one clear line for a wrong file."""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from moco_det.foundation.errors import InputError
from moco_det.weights.containers import read_contents
from moco_det.weights.pickled_names import Stub
from moco_det.weights.reading import read_checkpoint
from moco_det.weights.tensors import tensors_of


def variety() -> OrderedDict[str, torch.Tensor]:
    """Tensors of every type and layout a checkpoint may have."""
    base = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    return OrderedDict(
        plain=base,
        view=base[1, 1:],
        transposed=base.permute(2, 0, 1),
        shared=base.view(-1)[5:9],
        channels_last=torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).to(
            memory_format=torch.channels_last
        ),
        scalar=torch.tensor(3.5),
        empty=torch.zeros(0, 4),
        half=base.half() / 3,
        brain=base.bfloat16() / 3,
        double=base.double() / 3,
        count=torch.tensor(7),
        flags=torch.tensor([True, False]),
        bytes=torch.arange(5, dtype=torch.uint8),
        parameter=torch.nn.Parameter(base.clone()),
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_equal_those_of_torch_load(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"model": variety()}, path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)["model"]
    read = tensors_of(read_contents(path).root["model"])
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        number = tensor.detach()
        number = number.float() if number.is_floating_point() else number
        got = read[name].read()
        assert got.shape == tuple(tensor.shape) and np.array_equal(got, number.numpy()), name


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_equal_those_of_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    arrays = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "half": np.arange(3, dtype=np.float16),
        "zero": np.array(5, dtype=np.int64),
    }
    path = tmp_path / "x.pkl"
    other = {"names": {"a", "b"}, "tuple": (1, -2, 2**70, 0.5, None, True), "text": "Zürich"}
    path.write_bytes(pickle.dumps({"model": arrays, **other}, protocol=protocol))
    root = read_contents(path).root
    assert root["tuple"] == other["tuple"] and root["text"] == "Zürich"
    read = tensors_of(root["model"])
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert np.array_equal(read[name].read(), array)


def test_object_and_big_endian_arrays_are_not_weights(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    model = {"objects": np.array([{}, 1], dtype=object), "swapped": np.zeros(2, dtype=">f4")}
    path.write_bytes(pickle.dumps({"model": model}))
    assert tensors_of(read_contents(path).root["model"]) == {}


def test_safetensors_of_the_library_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {n: t.detach().contiguous().clone() for n, t in variety().items() if n != "empty"}
    safetensors.torch.save_file(tensors, path, metadata={"note": "1"})
    contents = read_contents(path)
    assert contents.metadata == {"note": "1"}
    for name, tensor in tensors.items():
        number = tensor.float() if tensor.is_floating_point() else tensor
        assert np.array_equal(contents.root[name].read(), number.numpy()), name


@pytest.mark.parametrize("zipped", [True, False])
def test_foreign_objects_become_stubs(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    value = {"args": argparse.Namespace(lr=1), "acc": np.float64(3), "w": torch.ones(2)}
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    contents = read_contents(path)
    assert contents.foreign == ("argparse.Namespace",)
    assert contents.root["args"] == Stub("argparse.Namespace")
    assert tensors_of(contents.root)["w"].read().tolist() == [1, 1]


# Wrong files: one line, bounded memory --------------------------------------------------------


def absurd_legacy() -> bytes:
    tensor = (
        b"\x80\x02}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"\x8a\x06\x00\x00\x00\x00\x00\x40NtQK\x00\x8a\x06\x00\x00\x00\x00\x00\x40\x85K\x01\x85"
        b"\x89NtRs."
    )
    head = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(head) + tensor + pickle.dumps(["0"], 2) + struct.pack("<q", 2**46)


def deflated() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\0" * 50_000_000)
    return buffer.getvalue()


def script() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        archive.writestr("x/code/__torch__.py", b"")
    return buffer.getvalue()


def packed_script() -> bytes:
    """As torch.jit.save writes it: the program's text is compressed, its tensors are not."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", pickle.dumps({}))
        archive.writestr("x/code/__torch__.py", b"", zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


WRONG: dict[str, tuple[str, bytes, str]] = {
    "empty": ("x.pth", b"", "is empty"),
    "web page": ("x.pth", b"\n<!DOCTYPE html><html>404</html>", "is a web page"),
    "commented web page": ("x.pth", b"<!-- 404 -->\n<html>", "is a web page"),
    "marked web page": ("x.pth", b"\xef\xbb\xbf<!DOCTYPE html>", "is a web page"),
    "pointer": ("x.pth", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "gzip": ("x.pth.tar", b"\x1f\x8b\x08" + b"\0" * 50, "compressed archive: unpack"),
    "text": ("x.pth", b"epoch,loss\n1,2\n", "name another file, or fetch"),
    "one byte": ("x.pth", b"P", "is not a checkpoint"),
    "image": ("x.pkl", b"\xff\xd8\xff\xe0" + b"\0" * 99, "not a checkpoint"),
    "zip bomb": ("x.pth", deflated(), "compressed archive"),
    "other zip": ("x.pth", b"PK\x03\x04" + b"\0" * 40, "truncated or damaged"),
    "script": ("x.pth", script(), "TorchScript program"),
    "packed script": ("x.pth", packed_script(), "TorchScript program"),
    "half a pickle": ("x.pkl", pickle.dumps({"model": np.zeros(999)})[:500], "ends too early"),
    "absurd bytes": ("x.pkl", b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "ends too early"),
    "absurd text": ("x.pkl", b"\x80\x02X\xff\xff\xff\xff.", "ends too early"),
    "absurd memo": ("x.pkl", b"\x80\x02Kr" + b"r\xff\xff\xff\xffKr.", "no known format"),
    "absurd storage": ("x.pth", absurd_legacy(), "ends too early"),
    "absurd shape": (
        "x.pkl",
        pickle.dumps(np.zeros(2, np.float32)).replace(b"K\x02\x85", b"J\xff\xff\xff\x7f\x85"),
        "shape and size differ",
    ),
    "empty stack": ("x.pkl", b"\x80\x02.", "contradictory"),
    "persistent": ("x.pkl", b"\x80\x02K\x01Q.", "no storages"),
    "endless number": ("x.pkl", b"L" + b"9" * 10**6 + b"L\n.", "absurdly long"),
    "deep nesting": ("x.pkl", b"\x80\x02" + b"]" + b"\x85" * 10**5 + b".", "no known format"),
    "deep key": ("x.pkl", b"\x80\x02})" + b"\x85" * 10**5 + b"K\x01s.", "no known format"),
    "key that hashes for ever": (
        "x.pkl",
        b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s.",
        "no known format",
    ),
    "header": ("x.safetensors", struct.pack("<Q", 20) + b'{"a":{"dtype":"F32"' + b" " * 99, "dam"),
    "offsets": (
        "x.safetensors",
        struct.pack("<Q", 64)
        + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'.ljust(64),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_one_clear_line_in_little_memory(tmp_path: Path, name: str) -> None:
    file_name, data, message = WRONG[name]
    path = tmp_path / file_name
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            read_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    line = str(caught.value)
    assert message in line and file_name in line and "\n" not in line and len(line) < 700
    assert peak < 20_000_000 + 10 * len(data)


def test_a_sparse_giant_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    with open(path, "wb") as file:
        file.truncate(17 << 30)
    with pytest.raises(InputError, match="17 GiB: larger than any ResNet"):
        read_contents(path)


@pytest.mark.parametrize("part", [0.001, 0.3, 0.999])
def test_a_truncated_checkpoint_is_refused(
    tmp_path: Path, torchvision_file: Path, part: float
) -> None:
    path = tmp_path / "x.pth"
    data = torchvision_file.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(InputError, match="truncated or damaged"):
        read_checkpoint(path)


def test_a_flipped_bit_in_the_weights_is_found(tmp_path: Path, torchvision_file: Path) -> None:
    data = bytearray(torchvision_file.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    source = read_checkpoint(path)
    with pytest.raises(InputError, match="damaged .checksum"):
        for tensor in source.tensors.values():
            tensor.read()


def test_a_file_that_changes_after_it_was_opened_is_noticed(
    tmp_path: Path, torchvision_file: Path
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(torchvision_file.read_bytes())
    source = read_checkpoint(path)
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match="changed while it was read"):
        source.tensors["conv1.weight"].read()


def test_an_expanded_view_cannot_claim_more_than_its_storage(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    torch.save({"conv1.weight": torch.zeros(1).expand(64, 3, 7, 7)}, path)
    with pytest.raises(InputError, match="larger than its storage"):
        read_contents(path)
