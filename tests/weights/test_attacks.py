"""Files made to fill the memory or never to end: one line, little memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.architectures import backbone_tensors
from moco_det.weights.containers import MAX_DIRECTORY, read_contents
from moco_det.weights.reading import read_checkpoint
from tests.weights.watch import nothing_runs

MIB = 1 << 20

DOUBLED = b")" + b"2\x86" * 60  # a tuple of two of a tuple of two of ...: its text is endless


def zipped(program: bytes, *members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", program)
        for name, data in members:
            archive.writestr(f"x/{name}", data)
    return buffer.getvalue()


def legacy(program: bytes, keys: bytes) -> bytes:
    head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {}))
    return head + program + keys


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def many_pairs_again_and_again() -> bytes:
    pairs = b"](" + b"".join(b"J" + struct.pack("<i", i) + b"N\x86" for i in range(300_000)) + b"e"
    again = b"ccollections\nOrderedDict\nh\x00\x85R" * 3_000
    return b"\x80\x02" + pairs + b"q\x00" + again + b"."


def one_list_of_arguments_again_and_again() -> bytes:
    arguments = b"](" + b"N" * 500_000 + b"e"
    return b"\x80\x02" + arguments + b"q\x00cx\ny\nq\x01" + b"h\x01h\x00R" * 300_000 + b"."


def text_encoded_again_and_again() -> bytes:
    start = b"\x80\x02" + text("a" * 1024) + b"q\x00c_codecs\nencode\nq\x01"
    return start + b"h\x01h\x00\x85R" * 400_000 + b"."


def colliding_keys() -> bytes:
    keys = b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, 200_000))
    return b"\x80\x02}(" + keys + b"u."


def colliding_memo() -> bytes:
    puts = b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(1, 200_000))
    return b"\x80\x02N" + puts + b"."


def large_directory() -> bytes:
    size = 64 * MIB
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, size, 0, 0)
    return b"PK\x03\x04" + b"\0" * (size - 4) + end


def many_tensors() -> bytes:
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQK\x00K\x04\x85K\x01\x85\x89NtR"
    )
    keys = b"".join(text(f"layer1.0.conv{i}.weight") + b"h\x00" for i in range(30_000))
    return zipped(b"\x80\x02" + tensor + b"q\x000}(" + keys + b"u.", ("data/0", b"\0" * 16))


def giant_header() -> bytes:
    header = b'{"a":[' + b"[]," * (MAX_DIRECTORY // 2) + b"[]]}"
    return struct.pack("<Q", len(header)) + header


ATTACKS: dict[str, tuple[str, bytes, str]] = {
    "endless name": ("x.pkl", b"\x80\x04" + DOUBLED + b"2\x93.", "without a name"),
    "endless dtype": ("x.pkl", b"\x80\x02cnumpy\ndtype\n" + DOUBLED + b"\x85R.", "known format"),
    "endless storage name": (
        "x.pth",
        zipped(
            b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
            + DOUBLED
            + b"X\x03\x00\x00\x00cpuK\x04tQ."
        ),
        "storage without a name",
    ),
    "endless storage kind": (
        "x.pth",
        zipped(
            b"\x80\x02(X\x07\x00\x00\x00storage" + DOUBLED + text("0") + text("cpu") + b"K\4tQ."
        ),
        "unknown kind of storage",
    ),
    "endless key of a storage": (
        "x.pth",
        legacy(b"\x80\x02}.", b"\x80\x02]" + DOUBLED + b"a."),
        "no list of storages",
    ),
    "endless input record": (
        "x.pkl",
        b"\x80\x02}(" + text("input") + DOUBLED + text("format") + DOUBLED + b"u.",
        "known format",
    ),
    "huge number as a key": (
        "x.pkl",
        b"\x80\x02}" + b"\x8b" + struct.pack("<i", 5000) + b"\x01" * 5000 + b"Ns.",
        "absurdly long number",
    ),
    "huge number among the storages": (
        "x.pth",
        legacy(b"\x80\x02}.", b"\x80\x02]\x8b" + struct.pack("<i", 9999) + b"\x01" * 9999 + b"a."),
        "absurdly long number",
    ),
    "many pairs, many times": ("x.pkl", many_pairs_again_and_again(), "instructions"),
    "many arguments, many times": (
        "x.pkl",
        one_list_of_arguments_again_and_again(),
        "instructions",
    ),
    "text encoded many times": ("x.pkl", text_encoded_again_and_again(), "instructions"),
    "many dicts": ("x.pkl", b"\x80\x02" + b"}" * 4_000_000 + b".", "instructions"),
    "many sets": ("x.pkl", b"\x80\x04" + b"\x8f" * 4_000_000 + b".", "instructions"),
    "many marks": ("x.pkl", b"\x80\x02" + b"(" * 4_000_000 + b".", "instructions"),
    "keys that collide": ("x.pkl", colliding_keys(), "empty table"),
    "memo that collides": ("x.pkl", colliding_memo(), "absurd place"),
    "much short text": ("x.pkl", b"\x80\x02" + text("a" * 1000) * 90_000 + b".", "MiB of text"),
    "long line": ("x.pkl", b"V" + b"a" * (65 * MIB) + b"\n.", "endless line"),
    "many foreign names": (
        "x.pkl",
        b"\x80\x02" + b"".join(b"cmodule%d\nname\n)R" % i for i in range(20_000)) + b".",
        "kinds of foreign objects",
    ),
    "large directory": ("x.pth", large_directory(), "truncated or damaged"),
    "two tables of names": (
        "x.pth",
        zipped(pickle.dumps({}), ("../x/data.pkl", b""), ("data.pkl", pickle.dumps([]))),
        "two files",
    ),
    "many tensors": ("x.pth", many_tensors(), "more than 20000 tensors"),
    "giant header": ("x.safetensors", giant_header(), "a header of"),
    "deep header": (
        "x.safetensors",
        struct.pack("<Q", 400_005) + b'{"a":' + b"[" * 200_000 + b"]" * 200_000,
        "damaged",
    ),
    "overlapping tensors": (
        "x.safetensors",
        struct.pack("<Q", 136)
        + (
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
        ).ljust(136)
        + b"\0" * 12,
        "damaged",
    ),
    "a tensor twice": (
        "x.safetensors",
        struct.pack("<Q", 136)
        + (
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}'
        ).ljust(136)
        + b"\0" * 16,
        "damaged",
    ),
}

PROBE = """
import json, resource, sys
from moco_det.foundation.errors import InputError
from moco_det.weights.reading import read_checkpoint
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for path in sys.argv[1:]:
    try:
        read_checkpoint(path)
        message = "it was read"
    except InputError as error:
        message = str(error)
    print(json.dumps([path, message, peak() - before]), flush=True)
"""


def probe(*paths: Path, limit: int = 1500) -> list[tuple[str, str, int]]:
    """(path, error, MiB of memory beyond the imports) of reading in a process of its own.

    A process that takes more than `limit` MiB or that never ends fails the test.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit * MIB, limit * MIB)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_one_clear_line(tmp_path: Path, name: str) -> None:
    file_name, data, message = ATTACKS[name]
    path = tmp_path / file_name
    path.write_bytes(data)
    with nothing_runs(), pytest.raises(InputError) as caught:
        read_checkpoint(path)
    line = str(caught.value)
    assert message in line and file_name in line and line.isprintable() and len(line) < 700


def test_all_attacks_together_take_little_memory(tmp_path: Path) -> None:
    paths = []
    for name, (file_name, data, _) in ATTACKS.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / file_name).write_bytes(data)
        paths.append(folder / file_name)
    results = probe(*paths)
    assert len(results) == len(ATTACKS)
    assert max(peak for _, _, peak in results) < 450, [(p[-40:], m) for p, _, m in results]


def test_bytes_in_a_pickle_stay_in_the_file(tmp_path: Path) -> None:
    """Sparse files of 256 MiB: an array, bytes and text of all their length."""
    size = 1 << 28
    array = (
        b"\x80\x04}(" + text("conv1.weight") + b"cnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\n(K\x00tC\x01b\x87R(K\x01(J" + struct.pack("<i", size // 4) + b"t"
        b"cnumpy\ndtype\n(" + text("f4") + b"K\x00K\x01tR\x89\x8e" + struct.pack("<Q", size)
    )
    starts = {
        "array.pkl": (array, b"tbu."),
        "bytes.pkl": (b"\x80\x04\x8e" + struct.pack("<Q", size), b"."),
        "text.pkl": (b"\x80\x04\x8d" + struct.pack("<Q", size), b"."),
    }
    paths = []
    for name, (start, end) in starts.items():
        paths.append(tmp_path / name)
        with open(paths[-1], "wb") as file:
            file.write(start)
            file.seek(len(start) + size)
            file.write(end)
    for path, message, peak in probe(*paths):
        assert "known format" in message and peak < 50, (path, message, peak)


def test_one_memory_under_many_names_is_no_network(tmp_path: Path) -> None:
    """3 MB that claim to be the 500 MB of a wide ResNet-101."""
    tensors = backbone_tensors(ARCHITECTURES["wide_resnet101_2"])
    memory = torch.zeros(max(int(np.prod(t.shape)) for t in tensors))
    state = {
        t.torchvision: memory[: int(np.prod(t.shape))].view(t.shape) for t in tensors if t.shape
    }
    path = tmp_path / "x.pth"
    torch.save(state, path)
    with pytest.raises(InputError, match="share one memory"):
        read_checkpoint(path)


def test_many_views_of_one_storage_read_only_their_part(tmp_path: Path) -> None:
    memory = torch.arange(4 * MIB, dtype=torch.float32)
    state = {f"w{i}": memory[i * 1000 : i * 1000 + 10] for i in range(40)}
    state["strided"] = memory[5:500:3]
    for zip_format in (True, False):
        torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=zip_format)
        root = read_contents(tmp_path / "x.pth").root
        for name, tensor in state.items():
            read = root[name].read()
            assert np.array_equal(read, tensor.numpy())
            held = read if read.base is None else read.base
            assert not isinstance(held, np.ndarray) or held.nbytes < 10_000


def test_a_damaged_part_of_a_shared_storage_is_found(tmp_path: Path) -> None:
    memory = torch.zeros(MIB)
    path = tmp_path / "x.pth"
    torch.save({"a": memory[:4], "b": memory[8:]}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged .checksum"):
        read_contents(path).root["a"].read()
