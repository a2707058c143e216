"""Hostile images, annotations, lists and shards."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

from moco_det.data import coco_uri, voc_uri
from tests.data.builders import write_image
from tests.torture.base import Base
from tests.torture.values import (
    HTML,
    JSON,
    SPECIAL,
    YAML,
    Case,
    changed,
    damaged,
    raw_json,
    special,
)


def coco(rng: random.Random, at: Path, base: Base) -> Case:
    """A COCO json with values that no annotation has."""
    content = json.loads(base.coco.read_text())
    content = {**content, "annotations": content["annotations"][:6]}
    used = {row["image_id"] for row in content["annotations"]}
    content["images"] = [row for row in content["images"] if row["id"] in used]
    rle = {"size": [64, 64], "counts": rng.choice(([0, 20, 4076], "9" * 30, "", [9**9] * 3))}
    content["annotations"][0]["segmentation"] = rng.choice(
        (content["annotations"][0]["segmentation"], rle, {**rle, "size": [1e400, 64]})
    )
    tree, note = changed(content, rng, JSON, times=rng.choice((1, 1, 3)))
    text = raw_json(tree)
    if rng.random() < 0.1:
        data, note = damaged(text.encode(), rng)
        (at / "a.json").write_bytes(data)
    else:
        (at / "a.json").write_text(text, errors="surrogatepass")
    uri = coco_uri(at / "a.json", base.coco_images)
    way = rng.randrange(4)
    if way == 0:
        return Case(["make-shards", uri, "--output", str(at / "out")], note, new=True)
    if way == 1:
        pair = [str(at / "a.json"), "--images", str(base.coco_images)]
        return Case([*base.quickstart(at), "--coco", *pair], note)
    sets = {"DATASETS.TRAIN" if way == 2 else "DATASETS.TEST": repr((uri,))}
    return Case(base.train_net(at, sets, rng), note)


def voc(rng: random.Random, at: Path, base: Base) -> Case:
    """A VOC folder, one of whose xml files or lists is not what it should be."""
    root = at / "voc"
    shutil.copytree(base.voc, root, symlinks=True)
    files = [*root.glob("Annotations/*.xml"), root / "ImageSets/Main/train.txt"]
    file = rng.choice(files)
    text, note = file.read_text(errors="replace"), file.name
    way = rng.randrange(5)
    numbers = ("", "x", "nan", "inf", "-1", "1e12", "9" * 400, "1e400", *HTML)
    if way == 0:
        place = rng.choice(("<xmin>", "</xmin>", "<width>", "</object>"))
        text = text.replace(place, rng.choice(numbers))
    elif way == 1:
        lol = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
        text = f'<!DOCTYPE x [<!ENTITY a0 "ha">{lol}]><annotation>&a11;</annotation>'
    elif way == 2:
        text = "<annotation>" + "<a>" * 100_000
    elif way == 3:
        data, note = damaged(text.encode(), rng)
        file.write_bytes(data)
    else:
        note += " " + (kind := rng.choice(SPECIAL[:7]))
        special(file, kind)
    if way < 3:
        file.write_text(text)
    uri = voc_uri(root, "train")
    tool = rng.randrange(4)
    if tool == 0:
        return Case(["make-shards", uri, "--output", str(at / "out")], note, new=True)
    if tool == 1:
        return Case([*base.quickstart(at), "--data", str(root)], note)
    changes = {"DATASETS.TRAIN": repr((uri,)), "MODEL.MASK_ON": "False"}
    changes["DATASETS.TEST"] = repr((voc_uri(base.voc, "test"),))
    return Case(base.train_net(at, changes, rng), note)


def yolo(rng: random.Random, at: Path, base: Base) -> Case:
    """A YOLO folder with hostile labels or a hostile data.yaml."""
    root = at / "yolo"
    for split in ("train", "val"):
        for number in range(4):
            write_image(root / "images" / split / f"{number}.png", seed=number)
            label = root / "labels" / split / f"{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("0 0.5 0.5 0.4 0.4\n")
    description = {"train": "images/train", "val": "images/val", "names": "[a, b]", "nc": "2"}
    label = root / "labels" / "train" / "1.txt"
    way, note = rng.randrange(3), ""
    if way == 0:
        word = rng.choice(("nan", "inf", "-1", "1e400", "9" * 400, "x", "", "1e12", "\x00"))
        words = ["0", "0.5", "0.5", "0.4", "0.4"]
        words[rng.randrange(5)] = word
        many = [" ".join(words), "0 " + "0.5 " * rng.choice((7, 100_001)), "0 1e308 1e308 " * 3]
        label.write_text(rng.choice(many))
        note = f"label {word[:20]}"
    elif way == 1:
        key = rng.choice(list(description))
        description[key] = rng.choice((*YAML, "/", "/dev", "../../..", "/proc/self"))
        note = f"{key}: {description[key][:40]}"
    else:
        note = rng.choice(SPECIAL[:7])
        special(label, note)
    text = "".join(f"{key}: {value}\n" for key, value in description.items())
    (root / "data.yaml").write_text(text)
    return Case([*base.quickstart(at), "--data", str(root)], note)


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG that declares a size and holds what it is given, compressed."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def hostile_image(rng: random.Random, path: Path) -> str:
    """An image file that is none, or too much of one."""
    way = rng.choice(("damaged", "declares", "bomb", "text", *SPECIAL[:7]))
    if way == "damaged":
        source = io.BytesIO()
        write_image(path, 60, 80, seed=rng.randrange(99))
        source.write(path.read_bytes())
        data, note = damaged(source.getvalue(), rng)
        path.write_bytes(data)
        return f"{path.suffix} {note}"
    if way == "declares":
        sides = [rng.choice((0, 1, 20_000, 65_535, 2**31 - 1)) for _ in range(2)]
        kind = rng.randrange(3)
        text = b"P6 %d %d 255\n" % (sides[0], sides[1])
        bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, *sides, 1, 24, 0, 0, 1, 1, 0, 0)
        path.write_bytes((png(*sides, b"\0" * 999), text, bmp)[kind])
        return f"declares {sides}"
    if way == "bomb":
        side = rng.choice((9_000, 16_000, 30_000))
        squeeze = zlib.compressobj(9)
        rows = b"".join(squeeze.compress(bytes(3 * side + 1)) for _ in range(side))
        rows += squeeze.flush()
        whole = png(side, side, b"")
        empty = struct.pack(">I", len(zlib.compress(b"", 9))) + b"IDAT" + zlib.compress(b"", 9)
        body = b"IDAT" + rows
        real = struct.pack(">I", len(rows)) + body
        path.write_bytes(whole.replace(empty + struct.pack(">I", zlib.crc32(empty[4:])),
                                       real + struct.pack(">I", zlib.crc32(body))))  # fmt: skip
        return f"{side} x {side} pixels in {path.stat().st_size} bytes"
    if way == "text":
        path.write_bytes(b"<svg onload=alert(1)></svg>")
        return way
    special(path, way)
    return way


def images(rng: random.Random, at: Path, base: Base) -> Case:
    """Hostile images among good ones, at every door that opens images."""
    folder = at / "images"
    shutil.copytree(base.images, folder)
    notes = []
    for number in range(rng.choice((1, 1, 3))):
        suffix = rng.choice((".jpg", ".png", ".bmp", ".tif", ".webp", ".ppm"))
        notes.append(hostile_image(rng, folder / "cat" / f"x{number}{suffix}"))
    note = "; ".join(notes)
    tool = rng.randrange(6)
    if tool == 0:
        return Case(["make-shards", str(folder), "--output", str(at / "out")], note, new=True)
    if tool == 1:
        return Case(["predict", "--config-file", str(base.detector / "config.yaml"), "--input",
                     str(folder), "-o", str(at / "out")], note, new=True)  # fmt: skip
    if tool == 2:
        return Case(["probe", "knn", str(base.pretrained / "checkpoint.pth"), "--train",
                     str(folder), "--test", str(base.images), "--size", "32", "--results",
                     str(at / "rows.jsonl")], note)  # fmt: skip
    if tool == 3:
        return Case([*base.quickstart(at), "--data", str(folder)], note)
    more = rng.choice(({}, {"DATA.MAX_CORRUPT": "0.5"}, {"DATA.ON_DEVICE": "True"}))
    return Case(base.pretrain(at, {"DATA.PATH": str(folder), **more}), note)


def lists(rng: random.Random, at: Path, base: Base) -> Case:
    """Text lists of images, and addresses of data sets."""
    good = [str(path) for path in sorted(base.images.rglob("*.jpg"))]
    lines = [*good]
    for _ in range(rng.choice((1, 4, 24))):
        odd = ("", "/dev/zero", "/etc/passwd", "a" * 5000, "x\0y", ".", "..", "/", "\udcff",
               "http://localhost/x.jpg", "a\tb\tc", "\t", "pipe:touch canary", "%00")  # fmt: skip
        lines[rng.randrange(len(lines))] = rng.choice(odd)
    file = at / "list.txt"
    path, note = str(file), "odd lines"
    way = rng.randrange(5)
    file.write_text("\n".join(lines), errors="surrogateescape")
    if way == 0:
        data, note = damaged(file.read_bytes(), rng)
        file.write_bytes(data)
    elif way == 1:
        note = rng.choice(SPECIAL)
        path = special(file, note)
    elif way == 2:
        scheme = rng.choice(("voc", "coco", "file", "http", ""))
        tail = rng.choice(("?split=train", "?split=../../x", "?images=/dev", "?", "?a=b", "%00"))
        path = note = (
            f"{scheme}://{rng.choice((str(base.voc), '/dev/zero', '', 'x%00', file))}{tail}"
        )
    if rng.random() < 0.5:
        return Case(["make-shards", path, "--output", str(at / "out")], note, new=True)
    return Case(base.pretrain(at, {"DATA.PATH": path}), note)


def announced(rng: random.Random, tar: Path) -> str:
    """A tar, sparse or compressed, with members far larger than what they take on disk."""
    size = rng.choice((-512, 2**30, 2**36, 2**63))
    info = tarfile.TarInfo(f"x.{rng.choice(('jpg', 'cls', 'txt'))}")
    info.type = rng.choice((tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, b"Z"))
    kind, count = tarfile.GNU_FORMAT, rng.choice((1, 1, 3000))
    if rng.random() < 0.3:
        info.type, kind = tarfile.REGTYPE, tarfile.PAX_FORMAT
        info.pax_headers = {"GNU.sparse.size": str(size)}
    else:
        info.size = size
    head = info.tobuf(kind) + bytes(512)
    if rng.random() < 0.5:
        tar.write_bytes(head * count)
        os.truncate(tar, 2**37)
    else:
        with gzip.open(tar, "wb", 1) as archive:
            archive.write(head * count)
            for _ in range(rng.choice((0, 1100))):
                archive.write(bytes(2**20))
    return f"{count} of type {info.type!r} announce {size}"


PATTERNS = (
    "{000000..999999999}.tar", "{0..99999999999999999999}.tar", "{a..z}.tar", "{0..3.tar", "}.tar",
    "{9..0}.tar", "{" * 50 + "0..9" + "}" * 50 + ".tar", "{0..9}" * 12 + ".tar", "*" * 60 + ".tar",
    "pipe:false", "pipe:cat /dev/zero", "$NOTHING/{0..1}.tar", "~/x.tar", "x\0.tar",
    "n" * 5000 + ".tar", "http://127.0.0.1:9/x.tar", "[" * 30 + ".tar", ".tar",
)  # fmt: skip


def shards(rng: random.Random, at: Path, base: Base) -> Case:
    """Damaged tars, tars with odd members, and patterns that name too many."""
    folder = at / "shards"
    shutil.copytree(Path(base.shards).parent, folder)
    tar = next(folder.glob("*.tar"))
    path, way = str(tar), rng.choice(("damaged", "members", "sizes", "index", "pattern", "special"))
    note = way
    if way == "damaged":
        data, note = damaged(tar.read_bytes(), rng)
        tar.write_bytes(data)
    elif way == "members":
        with tarfile.open(tar, "a") as archive:
            for name in rng.sample(
                ("../../x.jpg", "/x.jpg", "é\n.jpg", "a.cls", "b.jpg", "c.", "d" * 90), 3
            ):
                info = tarfile.TarInfo(name)
                info.type = rng.choice((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, b"Z"))
                info.linkname = "/etc/passwd"
                body = rng.choice((b"", b"9" * 5000, HTML[0].encode(), bytes(50)))
                info.size = len(body) if info.type == tarfile.REGTYPE else 0
                archive.addfile(info, io.BytesIO(body))
    elif way == "sizes":
        note = announced(rng, tar)
    elif way == "index":
        tree = json.loads((folder / "shards.json").read_text())
        tree, note = changed(tree, rng, JSON, times=2)
        (folder / "shards.json").write_text(raw_json(tree), errors="surrogatepass")
        if rng.random() < 0.2:
            special(folder / "shards.json", note := rng.choice(SPECIAL[:7]))
    elif way == "pattern":
        note = rng.choice(PATTERNS)
        path = note if ":" in note[:6] else os.path.join(str(folder), note)
    else:
        note = rng.choice(SPECIAL)
        path = special(tar, note)
    if rng.random() < 0.4:
        return Case(["make-shards", "--index", path], note)
    more = {"DATA.IMAGES": rng.choice(("0", "24", "100000000"))} if rng.random() < 0.5 else {}
    return Case(base.pretrain(at, {"DATA.PATH": path, **more}), note)
