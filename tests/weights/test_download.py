"""Weights by address and by name, from a server on this machine: whole and right, or one line."""

from __future__ import annotations

import hashlib
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights import download
from moco_det.weights.convert import convert
from moco_det.weights.download import local_path, network_of_address
from moco_det_tools.convert_weights import main
from moco_det_tools.entry import run


class FileServer(ThreadingHTTPServer):
    """Serves `files`; `short` bytes less than promised; counts what is asked for."""

    files: dict[str, bytes]
    short = 0
    asked = 0
    address = ""


class Answer(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        self.server.asked += 1
        data = self.server.files.get(self.path.partition("?")[0])
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) - self.server.short])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FileServer]:
    made = FileServer(("127.0.0.1", 0), Answer)
    made.files = {}
    made.address = f"http://127.0.0.1:{made.server_port}"
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return folder / "checkpoints"


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def refusal(name: str) -> str:
    with pytest.raises(InputError) as caught:
        local_path(name)
    line = str(caught.value)
    assert "\n" not in line and name.partition("?")[0] in line
    return line


def test_an_address_is_fetched_once_and_converts_as_a_file_does(
    server: FileServer, cache: Path, moco_file: Path, tmp_path: Path
) -> None:
    server.files["/a/moco.pth.tar"] = moco_file.read_bytes()
    address = f"{server.address}/a/moco.pth.tar"
    done = convert(address, tmp_path / "b.pkl")
    convert(moco_file, tmp_path / "c.pkl")
    assert done.source.path.name == "moco.pth.tar" and cache in done.source.path.parents
    assert done.source.sha256 == hashlib.sha256(moco_file.read_bytes()).hexdigest()
    assert local_path(address) == done.source.path and server.asked == 1
    server.files["/b/moco.pth.tar"] = b"another"
    other = local_path(f"{server.address}/b/moco.pth.tar")
    assert other.read_bytes() == b"another"  # of the same name, elsewhere


def test_what_cannot_be_had_is_one_line_and_leaves_nothing(server: FileServer, cache: Path) -> None:
    server.files["/x.pth"] = b"\x80\x02" + b"0" * 5000
    server.files["/page.pth"] = b"<!DOCTYPE html><html>sign in</html>"
    assert "answers 404" in refusal(f"{server.address}/none.pth")
    assert "is a web page" in refusal(f"{server.address}/page.pth?download=1")
    assert "names no file" in refusal(f"{server.address}/")
    server.short = 900
    assert "broke off after 4102 of 5002 bytes" in refusal(f"{server.address}/x.pth")
    assert not list(cache.rglob("*"))
    server.short = 0
    assert local_path(f"{server.address}/x.pth").stat().st_size == 5002


def test_a_checksum_in_the_name_or_published_is_held(
    server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"\x80\x02weights"
    digest = hashlib.sha256(data).hexdigest()
    right, wrong = f"/r18-{digest[:8]}.pth", "/r18-0badf00d.pth"
    server.files |= {right: data, wrong: data, "/r18-e3b0c442.pth": data, "/r-20220825.pth": data}
    assert download.IN_NAME.search(right)
    path = local_path(server.address + right)
    assert path.parent == cache  # where torch.hub looks
    assert "sha256 starts" in refusal(server.address + wrong)
    assert kept(cache) == [path]
    path.write_bytes(b"cut off by another program")
    assert local_path(server.address + right).read_bytes() == data
    for unsaid in ("/r18-e3b0c442.pth", "/r-20220825.pth"):
        assert local_path(server.address + unsaid).read_bytes() == data
    monkeypatch.setitem(download.MD5, "moco.pth.tar", "0badf00d")
    server.files["/moco.pth.tar"] = data
    assert "md5 starts" in refusal(f"{server.address}/moco.pth.tar")


def test_an_unreachable_host_ends_with_code_2_and_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = "http://127.0.0.1:1/x.pth"  # nobody listens there
    assert run(lambda: main([address, str(tmp_path / "b.pkl")])) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {address}: ") and "cannot be reached" in error


@pytest.fixture
def asked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that are asked for; nothing is fetched."""
    addresses: list[str] = []
    monkeypatch.setattr(download, "_fetch", lambda address: addresses.append(address) or cache)
    return addresses


def test_torchvisions_names_are_its_published_files(asked: list[str]) -> None:
    local_path("torchvision:resnet50")
    local_path("torchvision:resnet50/IMAGENET1K_V2")
    assert [one.rpartition("/")[2] for one in asked] == [
        "resnet50-0676ba61.pth",
        "resnet50-11ad3fa6.pth",
    ]
    names = [name for name in torchvision.models.list_models() if name in ARCHITECTURES]
    for name in names:
        weights = torchvision.models.get_model_weights(name).__members__
        for one in weights:
            local_path(f"torchvision:{name}/{one}")
    assert len(names) == 10 and len(asked) > 12
    assert all(download.IN_NAME.search(one) for one in asked)
    assert "resnet18, resnet34" in refusal("torchvision:resnet5")
    assert "IMAGENET1K_V1" in refusal("torchvision:resnet18/IMAGENET1K_V9")


def test_detectron2s_addresses_are_where_detectron2_finds_them(asked: list[str]) -> None:
    local_path("detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    at = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl"
    assert asked == [at]


def test_hugging_face_and_timm_are_asked_where_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    def fetched(repository: str, file: str) -> str:
        asked.append((repository, file))
        if file == "gone":
            raise RuntimeError("404 Client Error\nlong")
        return str(tmp_path / file)

    cfg = types.SimpleNamespace(
        hf_hub_id="timm/resnet50.a1_in1k",
        hf_hub_filename=None,
        url="",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    hub = types.SimpleNamespace(hf_hub_download=fetched)
    models = types.SimpleNamespace(
        get_pretrained_cfg=lambda name: cfg if "resnet" in name else None
    )
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", hub)
    monkeypatch.setitem(__import__("sys").modules, "timm", types.ModuleType("timm"))
    monkeypatch.setitem(__import__("sys").modules, "timm.models", models)
    assert local_path("hf://me/mine/sub/x.pth") == tmp_path / "sub" / "x.pth"
    assert local_path("timm:resnet50.a1_in1k") == tmp_path / "model.safetensors"
    assert asked == [("me/mine", "sub/x.pth"), ("timm/resnet50.a1_in1k", "model.safetensors")]
    assert "404 Client Error" in refusal("hf://me/mine/gone")
    assert "no weights of that name" in refusal("timm:vit")
    cfg.mean = (0.5, 0.5, 0.5)
    assert "mean (0.5, 0.5, 0.5)" in refusal("timm:resnet50.odd")
    cfg.hf_hub_id, asked[:] = "timm/regnet", []
    models.get_pretrained_cfg = lambda name: cfg  # a network of timm brings its own mean
    assert local_path("timm:regnety_016.x") == tmp_path / "model.safetensors"
    assert asked == [("timm/regnet", "config.json"), ("timm/regnet", "model.safetensors")]
    assert network_of_address("timm:regnety_016.x") == "regnety_016.x"
    assert network_of_address("timm:resnet50.x") is network_of_address("x/timm:a") is None
    for name in ("huggingface_hub", "timm.models"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert "pip install 'moco-det[timm]'" in refusal("timm:resnet50")
    assert "pip install huggingface_hub" in refusal("hf://me/mine/x.pth")


@pytest.mark.parametrize("name", ["hf://me/mine", "ftp://host/x.pth", "s3://bucket/x.pth"])
def test_other_addresses_are_told_what_there_is(name: str) -> None:
    assert "hf://OWNER/REPO/FILE" in refusal(name)


def test_a_path_is_given_back_as_it_is(tmp_path: Path) -> None:
    assert local_path(tmp_path / "x.pth") == tmp_path / "x.pth" and local_path("") == Path()


@pytest.mark.parametrize("address", ["http://[bad/x.pth", "http:///x.pth", "https://"])
def test_what_is_no_address_is_one_line(address: str) -> None:
    with pytest.raises(InputError, match=r"no address|names no file"):
        local_path(address)


def test_an_empty_answer_is_not_kept(server: FileServer, cache: Path) -> None:
    server.files["/x.pth"] = b""
    with pytest.raises(InputError, match=r"gave nothing \(status 200\)"):
        local_path(f"{server.address}/x.pth")
    server.files["/x.pth"] = b"PK"
    assert local_path(f"{server.address}/x.pth").read_bytes() == b"PK"
