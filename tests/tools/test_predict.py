"""tools/predict.py as a user meets it: drawn images, bad images, bad input."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from moco_det import zoo
from moco_det.foundation.errors import InputError
from moco_det.runs import predict as prediction
from moco_det.runs import predictor
from moco_det.runs.predict import drawn_names, find_images, predict_folder, readable_suffixes
from moco_det.runs.predictor import Predictor, class_names
from moco_det.settings.config import dump
from moco_det.settings.engine import Detector
from moco_det.standalone.build import build_detector
from moco_det_tools.entry import run
from moco_det_tools.predict import main
from tests.standalone.tiny import CLASSES, tiny_config

NAMES = [f"thing {i}" for i in range(CLASSES)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves: its config, a detector (of random weights) and its row."""
    folder = tmp_path_factory.mktemp("run")
    cfg = tiny_config({"MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0"})
    torch.manual_seed(0)
    torch.save({"model": build_detector(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(dump(cfg))
    (folder / "results.jsonl").write_text(json.dumps({"dataset": {"classes": NAMES}}) + "\n")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three images, one in colour, one grey and in a folder of its own, one BMP."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(folder / "b.jpg")
    Image.fromarray(rng.integers(0, 255, (80, 64), dtype=np.uint8)).save(folder / "deep" / "a.png")
    Image.fromarray(rng.integers(0, 255, (70, 70, 3), dtype=np.uint8)).save(folder / "c.bmp")
    (folder / "notes.txt").write_text("no image")
    (folder / ".thumbnails").mkdir()
    shutil.copyfile(folder / "b.jpg", folder / ".thumbnails" / "b.jpg")
    return folder


def call(finished: Path, inputs: list[Path], output: Path, *options: str) -> int:
    config = ["--config-file", str(finished / "config.yaml"), "--engine", "standalone"]
    named = ["--input", *map(str, inputs), "--output", str(output)]
    return run(lambda: main([*config, *named, *options]))


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    text = capsys.readouterr().err
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


def test_every_image_of_a_folder_is_drawn_and_its_numbers_stand_beside_it(
    finished: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "drawn"
    assert call(finished, [photos], output, "--confidence-threshold", "0") == 0
    files = {p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file()}
    assert files == {"b.jpg", "deep/a.png", "c.png", "predictions.json", "classes.json"}
    rows = json.loads((output / "predictions.json").read_text())
    assert {row["image_id"] for row in rows} == {"b.jpg", "deep/a.png", "c.bmp"}
    names = json.loads((output / "classes.json").read_text())
    assert list(names.values()) == NAMES and {str(r["category_id"]) for r in rows} <= set(names)
    assert all("segmentation" in row for row in rows)
    for name, size in (("b.jpg", (90, 60)), ("deep/a.png", (64, 80)), ("c.png", (70, 70))):
        with Image.open(output / name) as drawn:
            assert drawn.size == size and drawn.mode == "RGB"
    # lossless, so what differs was drawn
    before = np.asarray(Image.open(photos / "c.bmp"))
    assert (before != np.asarray(Image.open(output / "c.png"))).any()
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("engine standalone (") and first.endswith("), float32")
    assert last == f"{len(rows)} detections on 3 images, in {output}"


def test_nothing_found_names_the_threshold(
    finished: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(finished, [photos], tmp_path / "none", "--confidence-threshold", "1") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("0 detections on 3 images") and "--confidence-threshold" in last


def test_the_threshold_decides_what_is_drawn_and_written(
    finished: Path, photos: Path, tmp_path: Path
) -> None:
    all_of_them = ("--confidence-threshold", "0")
    assert call(finished, [photos / "c.bmp"], tmp_path / "all", *all_of_them) == 0
    rows = json.loads((tmp_path / "all" / "predictions.json").read_text())
    scores = sorted(row["score"] for row in rows)
    limit = repr(scores[-2])
    assert len(scores) > 2 and scores[-3] < scores[-2]
    threshold = ("--confidence-threshold", limit)
    assert call(finished, [photos / "c.bmp"], tmp_path / "some", *threshold) == 0
    some = json.loads((tmp_path / "some" / "predictions.json").read_text())
    assert sorted(row["score"] for row in some) == scores[-2:]
    assert call(finished, [photos / "c.bmp"], tmp_path / "none") == 0  # 0.5: nothing is that sure
    drawn = np.asarray(Image.open(tmp_path / "none" / "c.png"))
    assert np.array_equal(drawn, np.asarray(Image.open(photos / "c.bmp")))


def test_bad_images_are_named_skipped_and_counted_and_strict_refuses_them(
    finished: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    content = (photos / "b.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(content[: len(content) // 2])
    (photos / "page.png").write_text("<html>404</html>")
    with caplog.at_level(logging.WARNING):
        assert call(finished, [photos], tmp_path / "drawn") == 0
    assert "on 3 images, 2 skipped" in capsys.readouterr().out
    skipped = [r.getMessage() for r in caplog.records if r.getMessage().startswith("skipped: ")]
    assert len(skipped) == 2 and "cut.jpg" in skipped[0] and "page.png" in skipped[1]
    assert not (tmp_path / "drawn" / "cut.jpg").exists()
    assert call(finished, [photos], tmp_path / "strict", "--strict") == 2
    assert "cut.jpg" in error_of(capsys)
    assert not (tmp_path / "strict").exists()


def missing(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    return [folder / "bad.jpg"], []


def empty_folder(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    (folder / "bad").mkdir()
    return [folder / "bad"], []


def corrupt(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    (folder / "bad.jpg").write_bytes(b"\xff\xd8 no more")
    return [folder / "bad.jpg"], []


def wrong_threshold(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    return [folder / "photos"], ["--confidence-threshold", "50"]


def no_number(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    return [folder / "photos"], ["--confidence-threshold", "nan"]


def wrong_classes(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    return [folder / "photos"], ["--classes", "cat", "dog"]


def no_weights(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    return [folder / "photos"], ["--opts", "MODEL.WEIGHTS", ""]


def missing_weights(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    return [folder / "photos"], ["--weights", str(folder / "bad.pth")]


def broken_weights(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    content = (finished / "model_final.pth").read_bytes()
    (folder / "bad.pth").write_bytes(content[:5000])
    return [folder / "photos"], ["--weights", str(folder / "bad.pth")]


def video(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    (folder / "bad.MP4").write_bytes(b"frames")
    return [folder / "bad.MP4"], []


def video_option(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    return [folder / "photos"], ["--video-input", "bad.mp4"]


def webcam(finished: Path, folder: Path) -> tuple[list[Path], list[str]]:
    return [folder / "photos"], ["--webcam"]


BAD = {
    video: "bad.MP4 is a video, and images are read here: take its frames first",
    video_option: "--video-input: images are read here: take its frames first",
    webcam: "--webcam: images are read here: take its frames first",
    missing: "bad.jpg does not exist",
    empty_folder: "bad holds no images",
    corrupt: "no image can be used: image",
    wrong_threshold: "the score threshold is 50.0",
    no_number: "the score threshold is nan",
    wrong_classes: "--classes names 2 classes",
    no_weights: "holds no whole detector",
    missing_weights: "bad.pth does not exist",
    broken_weights: "bad.pth is not a checkpoint",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
def test_bad_input_is_one_line_and_code_2_and_leaves_nothing(
    spoil: Any, finished: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs, options = spoil(finished, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert call(finished, inputs, tmp_path / "drawn", *options) == 2
    assert BAD[spoil] in error_of(capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_videos_in_a_folder_are_left_out_and_said_so(
    photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "deep" / "trip.mov").write_bytes(b"frames")
    with caplog.at_level(logging.WARNING):
        assert list(find_images([photos])) == ["b.jpg", "c.bmp", "deep/a.png"]
    (message,) = caplog.messages
    assert "1 of them" in message and "take its frames first" in message
    caplog.clear()
    find_images([photos / "b.jpg"])
    assert not caplog.messages


def test_an_output_folder_with_something_in_it_is_left_alone(
    finished: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.read_bytes() for p in photos.rglob("*") if p.is_file()}
    assert call(finished, [photos], photos) == 2
    assert "photos already exists" in error_of(capsys)
    assert {p: p.read_bytes() for p in photos.rglob("*") if p.is_file()} == before


def detector(rows: Any, train: tuple[str, ...] = (), folder: Path = Path("none")) -> Detector:
    return Detector(rows, 2, folder / "model_final.pth", train, "float32", None)


def nothing(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """A predictor of two classes that finds nothing."""
    engine = SimpleNamespace(open_detector=lambda _: detector(lambda *_: []))
    monkeypatch.setattr(predictor, "load_engine", lambda _: engine)
    config = zoo.get_config_file("R18_FPN")
    data = ["DATASETS.TRAIN", "('a',)", "DATASETS.TEST", "('b',)"]
    return Predictor(config, classes=("a", "b"), engine="standalone", overrides=data)


def test_a_failure_in_the_middle_leaves_no_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: Any) -> None:
        raise RuntimeError("in the middle")

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(prediction, "draw_detections", breaks)
    with pytest.raises(RuntimeError):
        predict_folder(nothing(monkeypatch), find_images([photos]), tmp_path / "drawn")
    assert sorted(tmp_path.rglob("*")) == before


def test_images_of_one_name_in_two_folders_keep_apart(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copyfile(photos / "deep" / "a.png", photos / "a.png")
    once = find_images([photos / "a.png", photos, photos / "b.jpg"])
    assert list(once) == ["a.png", "b.jpg", "c.bmp", "deep/a.png"]  # nothing twice
    both = find_images([photos / "a.png", photos / "deep" / "a.png"])
    assert both == {"a.png": photos / "a.png", "a_2.png": photos / "deep" / "a.png"}


def test_what_is_no_jpeg_is_drawn_into_a_png_of_its_stem_and_never_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "pic.webp",
        "pic.JPG",
        "cam.07.tif",
        "pic.gif",
        "pic.webp.png",
        "deep/pic.gif",
        "raw.1",
    ]
    drawn = ["pic.png", "pic.JPG", "cam.07.png", "pic.gif.png", "pic.webp.png", "deep/pic.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        kind = "PNG" if name == "raw.1" else None
        Image.new("RGB", (32, 32)).save(tmp_path / name, kind)
    images = find_images(tmp_path / name for name in names)
    images = {str(path.relative_to(tmp_path)): path for path in images.values()}
    assert drawn_names(images) == dict(zip(names, [*drawn, "raw.1.png"], strict=True))
    assert drawn_names(["a.bmp", "A.png", "a.bmp.png"])["a.bmp"] == "a.bmp_2.png"
    predict_folder(nothing(monkeypatch), images, tmp_path / "out")
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert written == {*drawn, "raw.1.png", "classes.json", "predictions.json"}


def test_class_names_are_given_or_recorded_or_read_from_the_training_data(
    tmp_path: Path, data_root: Path
) -> None:
    uri = f"voc://{data_root / 'voc_bccd'}?split=val"
    cells = Detector(lambda *_: [], 3, tmp_path / "model_final.pth", (uri,), "float32", None)
    assert class_names(cells) == ("Platelets", "RBC", "WBC")
    rows = [{"dataset": {"classes": ["x", "y"]}}, {"dataset": {"classes": ["p", "r", "w"]}}]
    lines = [*(json.dumps(row) for row in rows), json.dumps({"dataset": 3}), "{half a li"]
    (tmp_path / "results.jsonl").write_text("\n".join(lines))
    assert class_names(cells) == ("p", "r", "w")
    assert class_names(cells, ["a", "b", "c"]) == ("a", "b", "c")
    with pytest.raises(InputError, match="--classes names 1 classes"):
        class_names(cells, ["a", "a", "a"])
    with pytest.raises(InputError, match="training data cannot be read .*give --classes"):
        class_names(detector(lambda *_: [], (f"voc://{tmp_path}/gone?split=val",)))


@pytest.mark.detectron2
def test_both_engines_draw_the_same(finished: Path, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    options = ("--confidence-threshold", "0", "--opts", "MODEL.DEVICE", "cpu")
    found = {}
    for engine in ("standalone", "detectron2"):
        output = tmp_path / engine
        assert call(finished, [photos], output, "--engine", engine, *options) == 0
        found[engine] = json.loads((output / "predictions.json").read_text())
    ours, theirs = found["standalone"], found["detectron2"]
    assert len(ours) == len(theirs) > 3
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine["image_id"], mine["category_id"]) == (other["image_id"], other["category_id"])
        assert mine["bbox"] == pytest.approx(other["bbox"], abs=1e-3)
        assert mine["score"] == pytest.approx(other["score"], abs=1e-5)


def test_images_of_every_kind_that_pillow_reads_are_found(tmp_path: Path) -> None:
    names = [f"photo{suffix}" for suffix in readable_suffixes()]
    assert {"photo.webp", "photo.gif", "photo.jfif", "photo.tga"} < set(names)
    for name in (*names, "photo.pdf", "photo.mpg"):
        (tmp_path / name).touch()
    assert sorted(path.name for path in find_images([tmp_path]).values()) == sorted(names)
