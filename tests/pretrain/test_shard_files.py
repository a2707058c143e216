"""Files of shards: found by name, read, counted, indexed; damaged ones are one line."""

from __future__ import annotations

import gzip
import re
import tarfile
from pathlib import Path

import pytest

from moco_det.foundation.errors import InputError
from pretrain import data
from pretrain.data.shard_files import count_samples, list_shards, read_shard

from .shard_builders import error_of, open_stream, picture, write_stream, write_tar


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("d/x-{000000..000099}.tar", True),
        ("d/x.tgz", True),
        ("pipe:cat x", True),
        ("d/x.tar/images", False),
        ("voc://d?split=a.txt", False),
    ],
)
def test_shards_are_told_from_images_by_their_name(path: str, expected: bool) -> None:
    assert data.is_shards(path) is expected


def test_braces_and_stars_name_shards(tmp_path: Path) -> None:
    path = write_stream(tmp_path, [1, 1, 1])
    urls = list_shards(path).urls
    assert [Path(url).name for url in urls] == ["x-00.tar", "x-01.tar", "x-02.tar"]
    assert list_shards(str(tmp_path / "x-*.tar")).urls == urls
    assert list_shards(str(tmp_path / "x-{00,02}.tar")).urls == [urls[0], urls[2]]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x-{00..05}.tar", r"3 of 6 shards are missing, the first is .*x-03\.tar"),
        ("y-*.tar", "no such shards"),
        ("{x-00,x-00}.tar", "twice"),
        ("${NO_SUCH_VARIABLE}.tar", "cannot be expanded"),
    ],
)
def test_shards_that_are_not_there_are_refused(name: str, reason: str, tmp_path: Path) -> None:
    write_stream(tmp_path, [1, 1, 1])
    with pytest.raises(InputError, match=reason):
        list_shards(str(tmp_path / name))


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_samples_are_counted_as_they_are_read(suffix: str, tmp_path: Path) -> None:
    shard = tmp_path / f"x{suffix}"
    members = [
        ("__notes__/1.json", b"{}"),
        ("a/1.jpg", b"1"),
        ("a/1.cls", b"2"),
        ("a/2.json", b"{}"),
        ("3.left.PNG", b"3"),
        ("noending", b"?"),
    ]
    write_tar(shard, members)
    samples = list(read_shard(str(shard)))
    assert [(s.name.rpartition(":")[2], s.data, s.cls) for s in samples] == [
        ("a/1", b"1", b"2"),
        ("a/2", b"", None),
        ("3.left", b"3", None),
    ]
    assert [bool(s.fault) for s in samples] == [False, True, False]
    assert count_samples(str(shard)) == 3


def test_pictures_whose_names_hold_dots_are_samples_of_their_own(tmp_path: Path) -> None:
    shard = tmp_path / "x-00.tar"
    members = [
        (f"{folder}cam{cam:02d}.{frame:04d}.{kind}", content)
        for folder in ("", "a.b/")
        for cam in (3, 4)
        for frame in range(50)
        for kind, content in (("jpg", picture(frame, ".jpg")), ("cls", b"%d" % (frame % 2)))
    ]
    whole = [("5.depth.png", b"d"), ("5.jpg", b"5"), ("5.seg.png", b"s"), ("5.cls", b"1")]
    write_tar(shard, members + whole)
    samples = list(read_shard(str(shard)))
    pairs = zip(members[::2], members[1::2], strict=True)
    expected = [(name, image, cls) for (name, image), (_, cls) in pairs]
    found = [(f"{s.name.rpartition(':')[2]}.jpg", s.data, s.cls) for s in samples]
    assert found == [*expected, ("5.jpg", b"5", b"1")]
    assert count_samples(str(shard)) == len(samples) == 201


def damaged(kind: str, folder: Path) -> str:
    path = write_stream(folder, [4, 4], index=kind == "index")
    shard = folder / "x-01.tar"
    if kind == "cut":
        shard.write_bytes(shard.read_bytes()[:2000])
    elif kind == "text":
        shard.write_text("<html>")
    elif kind == "index":
        write_tar(shard, [("1.png", picture(1))])
    elif kind == "empty":
        for i in range(2):
            write_tar(folder / f"x-0{i}.tar", [])
    elif kind == "twice":
        write_tar(shard, [("1.png", b"1"), ("1.png", b"2")])
    else:
        write_announced(shard, kind)
    return path


def write_announced(shard: Path, kind: str) -> None:
    """A small tar with a header that announces too much, below zero or others without end."""
    info = tarfile.TarInfo("1.png")
    if kind == "sparse":
        info.pax_headers = {"GNU.sparse.size": str(2**40)}
    else:
        info.size = {"below": -512, "chain": 512}.get(kind, 2**40)
    if kind in ("names", "chain"):
        info.type = tarfile.GNUTYPE_LONGNAME
    header = info.tobuf(tarfile.PAX_FORMAT if kind == "sparse" else tarfile.GNU_FORMAT)
    with gzip.open(shard, "wb") as archive:
        archive.write((header + bytes(512)) * (5000 if kind == "chain" else 2))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("cut", r"x-01\.tar does not read to its end: unexpected end of data"),
        ("text", r"x-01\.tar does not read to its end"),
        ("index", r"x-01\.tar holds 1 samples and its index says 4"),
        ("empty", "hold no samples"),
        ("twice", r"x-01\.tar does not read to its end: .*duplicate"),
        ("large", r"x-01\.tar does not read to its end: .* more than the 2,147,483,648 read"),
        ("sparse", r"x-01\.tar does not read to its end: .* more than the 2,147,483,648 read"),
        ("names", r"x-01\.tar does not read to its end: .* more than the 1,048,576 read"),
        ("below", r"x-01\.tar does not read to its end: .* -512 bytes"),
        ("chain", r"x-01\.tar does not read to its end: .*recursion"),
    ],
)
def test_a_damaged_shard_is_one_line_that_names_it(kind: str, reason: str, tmp_path: Path) -> None:
    source = open_stream(damaged(kind, tmp_path), images=8)
    error = error_of(source.make_loader(batch=4, start=0, stop=4, workers=1, pin=False))
    assert re.search(reason, error) and "\n" not in error


@pytest.mark.parametrize("kind", ["cut", "text", "large", "sparse", "names", "below", "chain"])
def test_a_shard_that_cannot_be_counted_is_one_line_too(kind: str, tmp_path: Path) -> None:
    damaged(kind, tmp_path)
    with pytest.raises(InputError, match=r"x-01\.tar does not read to its end"):
        count_samples(str(tmp_path / "x-01.tar"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", r"shards\.json is not json"),
        ("[]", 'no "shards"'),
        ('{"shards": {"x-00.tar": "4"}}', 'no "shards"'),
        ('{"shards": {}, "classes": "ab"}', '"classes"'),
    ],
)
def test_a_damaged_index_is_refused(content: str, reason: str, tmp_path: Path) -> None:
    path = write_stream(tmp_path, [4])
    (tmp_path / "shards.json").write_text(content)
    with pytest.raises(InputError, match=reason):
        list_shards(path)


def test_the_index_gives_the_epoch_and_the_classes(tmp_path: Path) -> None:
    path = write_stream(tmp_path, [4, 6], index=True)
    source = open_stream(path)
    assert (source.images, source.classes, source.numbered) == (10, 3, False)
    assert source.identity == {"images": 10, "shards": 2}
    assert open_stream(path, images=7).images == 7
    (tmp_path / "shards.json").unlink()
    assert open_stream(path, images=7).classes is None
    with pytest.raises(InputError, match=r"DATA\.IMAGES, or count them once"):
        open_stream(path)
