"""Folders of images: found in order, decoded as the model takes them, what is no image is told."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.batch.engine import BatchReport, score_file
from edge_agent.batch.images import ImageShape, ImageSource, image_shape
from edge_agent.batch.job import BatchJob
from edge_agent.errors import ConfigError, InvalidInputError
from fleet_protocol.manifest import TensorSpec
from tests.agent.runtime import onnx_files

Image: Any = pytest.importorskip("PIL.Image", reason="no Pillow: pip install 'edgefleet[batch]'")

FLOAT, UINT8 = 1, 2


def folder_of(path: Path, count: int = 7, *, size: tuple[int, int] = (5, 4)) -> dict[str, np.ndarray]:
    """Images of `size` (width, height) in two folders, beside what is none; their pixels by path."""
    random = np.random.default_rng(6)
    pixels = {}
    for number in range(count):
        name = f"{'b' if number % 2 else 'a'}/{number}.png"
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        pixels[name] = random.integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels[name]).save(path / name)
    (path / "notes.txt").write_text("no image")
    (path / ".hidden.png").write_text("no image")
    return dict(sorted(pixels.items()))


def score(model: Path, source: Path, target: Path, **settings: Any) -> BatchReport:
    return score_file(BatchJob(model_path=model, input_path=source, output_path=target, **settings))


def test_images_are_scored_in_the_order_of_their_paths(tmp_path: Path) -> None:
    pixels = folder_of(tmp_path / "images")
    same = onnx_files.identity(tmp_path / "same.onnx", FLOAT, ["n", 4, 5, 3])

    report = score(same, tmp_path / "images", tmp_path / "out.npz", scale="0..255")

    assert (report.scored, report.rejected) == (7, 0)
    with np.load(tmp_path / "out.npz") as scores:
        assert scores["path"].tolist() == list(pixels)
        np.testing.assert_array_equal(scores["y"], np.stack(list(pixels.values())))


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("0..1", lambda x: x / 255),
        ("0..255", lambda x: x * 1.0),
        ("imagenet", lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
    ],
)
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_pixels_are_scaled_and_laid_out(tmp_path: Path, scale: str, expected: Any, layout: str) -> None:
    pixels = folder_of(tmp_path / "images", 3)
    shape = [4, 5, 3] if layout == "NHWC" else [3, 4, 5]
    spec = TensorSpec(name="x", datatype="FP32", shape=[-1, *shape])
    chosen: Any = scale
    source = ImageSource(tmp_path / "images", [spec], scale=chosen)

    (chunk,) = source.chunks(None, lambda: 10)

    wanted = expected(np.stack(list(pixels.values())).astype(np.float64))
    np.testing.assert_allclose(
        chunk.inputs["x"], wanted if layout == "NHWC" else wanted.transpose(0, 3, 1, 2), atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "size", "found"),
    [
        ([-1, 32, 48, 3], None, (32, 48, 3, "NHWC")),
        ([-1, 3, 32, 48], None, (32, 48, 3, "NCHW")),
        ([1, 1, 28, 28], None, (28, 28, 1, "NCHW")),
        ([-1, 28, 28, 1], None, (28, 28, 1, "NHWC")),
        ([-1, 3, 30, 3], None, (30, 3, 3, "NCHW")),
        ([-1, 28, 30], None, (28, 30, 1, "NHW")),
        ([-1, 3, -1, -1], (20, 30), (20, 30, 3, "NCHW")),
        ([-1, -1, -1, 3], (20, 30), (20, 30, 3, "NHWC")),
        ([-1, 3, -1, -1], None, "--size"),
        ([-1, 3, 32, 48], (32, 47), "the model takes 32x48"),
        ([-1, 4, 32, 48], None, "no images"),
        ([-1, 640], None, "no images"),
    ],
)
def test_a_signature_says_how_images_are_taken(shape: list[int], size: tuple[int, int] | None, found: Any) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=shape)
    if isinstance(found, str):
        with pytest.raises(ConfigError, match=found):
            image_shape(spec, size)
    else:
        height, width, channels, layout = found
        assert image_shape(spec, size) == ImageShape(height=height, width=width, channels=channels, layout=layout)


def test_an_unreadable_image_is_a_reject_and_the_others_are_scored(tmp_path: Path) -> None:
    pixels = folder_of(tmp_path / "images")
    (tmp_path / "images" / "a" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnot more")
    torn = tmp_path / "images" / "a" / "torn.png"
    Image.fromarray(np.zeros((300, 400, 3), dtype=np.uint8) + np.arange(400, dtype=np.uint8)[:, None]).save(torn)
    torn.write_bytes(torn.read_bytes()[:200])
    (tmp_path / "images" / "b" / "empty.jpg").write_bytes(b"")
    same = onnx_files.identity(tmp_path / "same.onnx", FLOAT, ["n", 4, 5, 3])

    report = score(same, tmp_path / "images", tmp_path / "out.csv")

    assert (report.scored, report.rejected) == (len(pixels), 3)
    told = (tmp_path / "out.rejects.csv").read_text()
    for name in ("a/bad.png", "a/torn.png", "b/empty.jpg"):
        assert name in told


def test_an_image_of_too_many_pixels_is_a_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_agent.batch import images

    monkeypatch.setattr(images, "MAX_PIXELS", 19)
    folder_of(tmp_path / "images", 2)
    same = onnx_files.identity(tmp_path / "same.onnx", FLOAT, ["n", 4, 5, 3])

    assert score(same, tmp_path / "images", tmp_path / "out.csv").rejected == 2
    assert "5x4 pixels" in (tmp_path / "out.rejects.csv").read_text()


def test_images_of_any_kind_and_size_become_what_the_model_takes(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, mode in enumerate(("1", "L", "P", "RGBA", "CMYK")):
        Image.new(mode, (20, 10)).save(tmp_path / "images" / f"{number}.{'tif' if mode == 'CMYK' else 'png'}")
    gray = onnx_files.identity(tmp_path / "gray.onnx", UINT8, ["n", 1, 8, 16])

    report = score(gray, tmp_path / "images", tmp_path / "out.npz", scale="0..255")

    assert report.scored == 5
    assert np.load(tmp_path / "out.npz")["y"].shape == (5, 1, 8, 16)
    with pytest.raises(ConfigError, match=r"--scale 0\.\.255"):
        score(gray, tmp_path / "images", tmp_path / "out.csv")


def test_the_real_image_model_sees_what_the_loop_by_hand_sees(tmp_path: Path) -> None:
    import onnxruntime as ort

    model = onnx_files.mlperf_tiny("ic.onnx")
    pixels = folder_of(tmp_path / "images", 5, size=(32, 32))

    score(model, tmp_path / "images", tmp_path / "out.npz", scale="0..255")

    x = np.stack(list(pixels.values())).astype(np.float32)
    by_hand = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, {"input_1": x})[0]
    np.testing.assert_allclose(np.load(tmp_path / "out.npz")["Identity"], by_hand, atol=1e-4)


def test_a_folder_that_changed_is_another_job(tmp_path: Path) -> None:
    folder_of(tmp_path / "images")
    job = BatchJob(
        model_path=onnx_files.identity(tmp_path / "same.onnx", FLOAT, ["n", 4, 5, 3]),
        input_path=tmp_path / "images",
        output_path=tmp_path / "out.npz",
        resume=True,
    )
    score_file(job, is_stopping=lambda: True)
    (tmp_path / "images" / "a" / "new.png").write_bytes(b"")

    with pytest.raises(ConfigError, match="another input"):
        score_file(job)


def test_a_folder_without_images_and_a_lack_of_the_library_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = onnx_files.identity(tmp_path / "same.onnx", FLOAT, ["n", 4, 5, 3])
    (tmp_path / "images").mkdir()
    with pytest.raises(InvalidInputError, match="holds no images"):
        score(same, tmp_path / "images", tmp_path / "out.csv")

    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match=r"pip install 'edgefleet\[batch\]'"):
        score(same, tmp_path / "images", tmp_path / "out.csv")
