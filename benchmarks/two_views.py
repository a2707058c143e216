"""Images a second and core through two random views: the usual pipeline against ours, in turn.

    python benchmarks/two_views.py [--recipe moco_v2] [--size 224] [--images FOLDER]

Both are whole loaders in this one process and thread: JPEG files in, batches of two views out. The
usual one is PIL and torchvision's transforms as the MoCo recipes are written with them; it ends in
normalised float32. Ours ends in uint8, which the device normalises; "ours, normalised" does that
on the same core, or with `--device cuda` on a GPU. Time is the process's CPU time, which other work
on the machine lengthens far less than the clock's; a ratio is taken within a round, so that what
remains slows both of its sides.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image as PIL
from PIL import ImageFilter
from rows import add_rows_option, write_row
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

from moco_det_tools.entry import run
from pretrain import augment, data

Pair = tuple[torch.Tensor, torch.Tensor]


class PilBlur:
    """PIL's Gaussian blur with a standard deviation drawn from 0.1 to 2 pixels."""

    def __call__(self, image: PIL.Image) -> PIL.Image:
        sigma = float(torch.empty(()).uniform_(0.1, 2.0))
        return image.filter(ImageFilter.GaussianBlur(sigma))


def reference_transform(recipe: str, size: int) -> transforms.Compose:
    """The recipe by torchvision's public transforms on PIL images (MoCo v2 paper, Section 3)."""
    colour = {
        "moco_v1": [transforms.RandomGrayscale(0.2), transforms.ColorJitter(0.4, 0.4, 0.4, 0.4)],
        "moco_v2": [
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([PilBlur()], p=0.5),
        ],
    }[recipe]
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            *colour,
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(augment.IMAGE_MEAN, augment.IMAGE_STD),
        ]
    )


class ReferenceViews(Dataset[Pair]):
    """Two views of each image file, from PIL."""

    def __init__(self, paths: list[str], transform: transforms.Compose) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Pair:
        with open(self.paths[index], "rb") as file:
            image = PIL.open(file).convert("RGB")
        return self.transform(image), self.transform(image)


def reference_batches(paths: list[str], *, recipe: str, size: int, batch: int) -> Iterator[int]:
    """The usual loader, for ever; yields the images of each batch."""
    loader = DataLoader(
        ReferenceViews(paths, reference_transform(recipe, size)),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
    )
    while True:
        for first, _ in loader:
            yield len(first)


def our_batches(
    images: data.ImageList, *, recipe: str, size: int, batch: int, device: str | None
) -> Iterator[int]:
    """Our loader, for ever; yields the images of each batch, normalised on a device if given."""
    spec = data.ViewSpec(augment.recipe(recipe, min_scale=0.2), size=size, views=2, seed=0)
    views = data.ViewSet(images, spec)
    order = data.Order(len(images), batch, seed=0, start=0, stop=2**31)
    for raw in data.BatchLoader(views, order, workers=0, pin=False):
        if device is not None:
            for view in raw.pixels.to(device).unbind(dim=1):
                augment.normalise(view)
        yield len(raw.pixels)


def decoded(paths: list[str]) -> Iterator[int]:
    """OpenCV's decoder and nothing else, for ever."""
    files = [np.fromfile(path, dtype=np.uint8) for path in paths]
    while True:
        for content in files:
            cv2.imdecode(content, cv2.IMREAD_COLOR)
            yield 1


def photo_like(rng: np.random.Generator, *, height: int, width: int) -> np.ndarray:
    """An image [H, W, 3] whose amplitude falls as 1/f, like a photo's, with weaker colour."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    planes = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency, s=(height, width)
    )
    planes /= planes.std(axis=(1, 2), keepdims=True)
    luma, red, blue = planes * np.array([55.0, 18.0, 18.0])[:, None, None]
    image = 118 + luma[..., None] + np.stack([red, -(red + blue) / 2, blue], axis=2)
    return image.clip(0, 255).astype(np.uint8)


def write_images(folder: Path, *, count: int) -> None:
    """Photo-like JPEGs of 500 x 375 pixels, quality 90."""
    rng = np.random.default_rng(0)
    for i in tqdm(range(count), desc="making images", delay=2):
        image = PIL.fromarray(photo_like(rng, height=375, width=500))
        image.save(folder / f"{i:04d}.jpg", quality=90)


def rate(batches: Iterator[int], seconds: float) -> float:
    """Images a second of CPU time over whole batches that take at least `seconds`."""
    images, start = 0, time.process_time()
    while (spent := time.process_time() - start) < seconds:
        images += next(batches)
    return images / spent


def measure(
    pipelines: dict[str, Iterator[int]], *, rounds: int, seconds: float
) -> dict[str, list[float]]:
    """Images a second of every pipeline in every round, one pipeline after the other."""
    for batches in pipelines.values():
        next(batches)  # the first batch warms up
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    with tqdm(total=rounds * len(pipelines), desc="measuring") as progress:
        for _ in range(rounds):
            for name, batches in pipelines.items():
                rates[name].append(rate(batches, seconds))
                progress.update()
    return rates


def table(rates: dict[str, list[float]]) -> list[str]:
    """A line a pipeline: median images a second, and the ratio to the first one, with its range."""
    reference = next(iter(rates.values()))
    lines = [f"{'':20}{'images/s':>10}{'us/image':>10}{'ratio':>8}  (lowest..highest round)"]
    for name, values in rates.items():
        ratios = [ours / theirs for ours, theirs in zip(values, reference, strict=True)]
        median = statistics.median(values)
        lines.append(
            f"{name:20}{median:10.1f}{1e6 / median:10.0f}{statistics.median(ratios):8.2f}"
            f"  ({min(ratios):.2f}..{max(ratios):.2f})"
        )
    return lines


def parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    made = argparse.ArgumentParser(description="Two-view loaders: images/s per core, in turn.")
    made.add_argument("--recipe", default="moco_v2", choices=["moco_v1", "moco_v2"])
    made.add_argument("--size", type=int, default=224, help="side of a view in pixels")
    made.add_argument("--images", metavar="FOLDER", help="JPEGs to read instead of made ones")
    made.add_argument("--count", type=int, default=128, help="made images")
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="that normalises")
    made.add_argument("--rounds", type=int, default=9)
    made.add_argument(
        "--seconds", type=float, default=1.5, help="CPU time of one pipeline in one round"
    )
    add_rows_option(made)
    return made


def compare(folder: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Measure all pipelines on the images of a folder."""
    images = data.list_images(folder)
    sizes = [Path(path).stat().st_size for path in images.paths]
    print(f"{len(images)} images, {np.mean(sizes) / 1024:.0f} KiB on average, recipe {args.recipe}")
    batch = min(args.batch, len(images))
    shape: dict[str, Any] = {"recipe": args.recipe, "size": args.size, "batch": batch}
    pipelines = {
        "PIL + torchvision": reference_batches(images.paths, **shape),
        "ours": our_batches(images, **shape, device=None),
        "ours, normalised": our_batches(images, **shape, device=args.device),
        "decoding alone": decoded(images.paths),
    }
    return measure(pipelines, rounds=args.rounds, seconds=args.seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, measure, print the table."""
    args = parser().parse_args(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, opencv {cv2.__version__}, one process, one thread")
    with tempfile.TemporaryDirectory() as scratch:
        if not args.images:
            write_images(Path(scratch), count=args.count)
        rates = compare(args.images or scratch, args)
    print("\n".join(table(rates)))
    write_row(
        args.rows,
        what="two views per core",
        case=f"{args.recipe}, {args.size} px",
        peer="PIL + torchvision",
        ours=f"ours, normalised on {args.device}",
        unit="images/s",
        there=rates["PIL + torchvision"],
        here=rates["ours, normalised"],
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
