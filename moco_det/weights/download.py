"""Weights by name: https://..., torchvision:NAME[/WEIGHTS], timm:NAME and hf://OWNER/REPO/FILE.

And detectron2://..., as detectron2's own configs name theirs.

What is fetched lies in torch.hub's cache (Hugging Face's own for hf:// and timm:), whole or not at
all; it is read as every file is: nothing in it is run.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from moco_det.foundation.atomic import make_folder, replacing
from moco_det.foundation.errors import InputError
from moco_det.resnet.architectures import ARCHITECTURES
from moco_det.weights.containers import MAX_FILE, lookalike
from moco_det.weights.file_slices import BLOCK

TIMEOUT = 30  # seconds without an answer
FORMS = "https://..., torchvision:resnet50, timm:NAME or hf://OWNER/REPO/FILE"
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"  # as its own path manager has it
# torch.hub's rule for the start of a sha256, of eight digits or more and no date
IN_NAME = re.compile(r"-(?=[0-9]*[a-f])([0-9a-f]{8,64})\.[a-z.]+$")
NOTHING = "e3b0c442"  # the sha256 of no bytes, which OpenSelfSup's names carry
# file -> the start of its md5, as facebookresearch/moco's README has it
MD5 = {
    "moco_v1_200ep_pretrain.pth.tar": "b251726a",
    "moco_v2_200ep_pretrain.pth.tar": "59fd9945",
    "moco_v2_800ep_pretrain.pth.tar": "a04e12f8",
}


def is_address(name: str | Path) -> bool:
    """Whether a name is none of a file."""
    return "://" in str(name) or str(name).startswith(("torchvision:", "timm:"))


def local_path(name: str | Path) -> Path:
    """The file on this machine that a name stands for, fetched where it is an address.

    A path is given back as it is. Raises InputError, one line, for whatever cannot be had.
    """
    text = str(name)
    if text.startswith("detectron2://"):
        text = DETECTRON2 + text.removeprefix("detectron2://")
    if text.startswith(("https://", "http://")):
        return _fetch(text)
    if text.startswith("torchvision:"):
        return _fetch(_torchvision_address(text))
    if text.startswith("timm:"):
        return _timm_file(text)
    if text.startswith("hf://"):
        owner, _, rest = text.removeprefix("hf://").partition("/")
        repo, _, file = rest.partition("/")
        if not file:
            raise InputError(f"{text}: write hf://OWNER/REPO/FILE")
        return _hugging_face_file(text, f"{owner}/{repo}", file)
    if "://" in text:
        raise InputError(f"{text} is no address that weights are fetched from: write {FORMS}")
    return Path(name)


# Addresses --------------------------------------------------------------------------------------


def _fetch(address: str) -> Path:
    """A file of the web, from the cache if it is there."""
    import torch.hub

    try:
        parts = urlsplit(address)
    except ValueError:
        raise InputError(f"{address} is no address: write {FORMS}") from None
    name = parts.path.rpartition("/")[2]
    if not name or not parts.netloc:
        raise InputError(f"{address} names no file: give the address of the checkpoint itself")
    stated = IN_NAME.search(name)
    algorithm, digest = ("sha256", stated[1]) if stated else ("md5", MD5.get(name, ""))
    digest = "" if digest == NOTHING else digest
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not stated:  # where no checksum is in the name, other files of the web are called alike
        folder /= hashlib.sha256(address.encode()).hexdigest()[:10]
    path = folder / name
    if path.is_file() and _digest(path, algorithm).startswith(digest):
        return path
    print(f"fetching {address} to {path}", file=sys.stderr)
    make_folder(folder)
    try:
        with replacing(path) as file:
            checksum = hashlib.new(algorithm)
            for block in _body(address, name):
                file.write(block)
                checksum.update(block)
            if not checksum.hexdigest().startswith(digest):
                raise InputError(
                    f"{address} gave a file whose {algorithm} starts {checksum.hexdigest()[:8]}, "
                    f"not {digest} as published: nothing was kept; fetch it again, or from "
                    "another place"
                )
    finally:
        with suppress(OSError):  # a file is in it
            folder.rmdir()
    return path


def _body(address: str, name: str) -> Iterator[bytes]:
    """The blocks of what an address gives, to the last byte that was promised, with a bar."""
    host = urlsplit(address).netloc
    elsewhere = "download the file by other means and name it"
    try:
        request = Request(address, headers={"User-Agent": "moco-det"})
        with urlopen(request, timeout=TIMEOUT) as answer:
            yield from _blocks(answer, address, name)
    except HTTPError as error:
        raise InputError(
            f"{address}: {host} answers {error.code} {error.reason}: check the address"
        ) from None
    except URLError as error:
        raise InputError(
            f"{address}: {host} cannot be reached ({error.reason}): check the address and the "
            f"network, or {elsewhere}"
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        raise InputError(
            f"{address}: the transfer failed ({type(error).__name__}: {error}): try again, "
            f"or {elsewhere}"
        ) from None


def _blocks(answer: HTTPResponse, address: str, name: str) -> Iterator[bytes]:
    promised, done = answer.length, 0
    if max(promised or 0, done) > MAX_FILE:
        raise InputError(f"{address} has {promised} bytes: larger than any ResNet checkpoint")
    bar = tqdm(
        desc=name, total=promised, unit="B", unit_scale=True, unit_divisor=1024, disable=None
    )
    with bar:
        while block := answer.read(BLOCK):
            other = None if done else lookalike(block)
            if other is not None:
                raise InputError(f"{address} {other}")
            done += len(block)
            if done > MAX_FILE:
                raise InputError(f"{address} does not end: no ResNet checkpoint is that large")
            bar.update(len(block))
            yield block
    if not done:
        raise InputError(f"{address} gave nothing (status {answer.status}): check the address")
    if promised is not None and done != promised:
        raise InputError(
            f"{address}: the connection broke off after {done} of {promised} bytes: try again"
        )


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


# Names ------------------------------------------------------------------------------------------


def _torchvision_address(text: str) -> str:
    """Where torchvision's weights lie; IMAGENET1K_V1, the recipe of the papers, by default."""
    from torchvision.models import get_model_weights, list_models

    name, _, weights = text.removeprefix("torchvision:").partition("/")
    known = [model for model in list_models() if model in ARCHITECTURES]
    if name not in known:
        raise InputError(f"{text}: torchvision has these ResNets: {', '.join(known)}")
    published = get_model_weights(name).__members__
    weights = weights or "IMAGENET1K_V1"
    if weights not in published:
        raise InputError(f"{text}: torchvision has {', '.join(published)} of {name}")
    return str(published[weights].url)


def network_of_address(name: str | Path) -> str | None:
    """The network of timm, no ResNet, that an address names, with its tag; None of others."""
    word = str(name).removeprefix("timm:") if str(name).startswith("timm:") else ""
    return word if word and word.partition(".")[0] not in ARCHITECTURES else None


def _timm_file(text: str) -> Path:
    """The file that timm would load."""
    try:
        from timm.models import get_pretrained_cfg
    except ImportError:
        raise InputError(f"{text} needs timm: pip install 'moco-det[timm]'") from None
    name = text.removeprefix("timm:")
    try:
        cfg = get_pretrained_cfg(name)
    except (RuntimeError, KeyError, ValueError):  # no such model, no such tag
        cfg = None
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        raise InputError(f"{text}: timm has no weights of that name: timm.list_pretrained()")
    if network_of_address(text) is None and not _imagenet(cfg.mean, cfg.std):
        raise InputError(
            f"{text} was trained on pixels of mean {cfg.mean} and std {cfg.std}, which no format "
            "of the converter has: take another"
        )
    if not cfg.hf_hub_id:
        # a pair is an address and the name to keep the file by
        return _fetch(str(cfg.url[0] if isinstance(cfg.url, tuple) else cfg.url))
    if network_of_address(text) is not None:
        with suppress(InputError):  # to lie beside the weights and say what they are
            _hugging_face_file(text, cfg.hf_hub_id, "config.json")
    return _hugging_face_file(text, cfg.hf_hub_id, cfg.hf_hub_filename or "model.safetensors")


def _imagenet(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    return tuple(mean) == (0.485, 0.456, 0.406) and tuple(std) == (0.229, 0.224, 0.225)


def _hugging_face_file(text: str, repository: str, file: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise InputError(f"{text} needs huggingface_hub: pip install huggingface_hub") from None
    try:
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # of its own, requests' or httpx', which differ by version
        why = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{text} cannot be fetched ({type(error).__name__}: {why}): check the name and the "
            "network, or download the file by other means and name it"
        ) from None
