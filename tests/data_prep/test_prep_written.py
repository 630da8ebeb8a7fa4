"""What ends up in the FFCV files and in dataset.json."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prep_files import encode, pixels, write_files

import fastpeer
from fastpeer.data_prep import PrepOptions, PrepSummary, prepare
from fastpeer.data_prep.images import PixelForm
from fastpeer.data_prep.writer.space import file_bytes, page_size

pytestmark = pytest.mark.usefixtures("clean")


def read_beton(path: Path) -> tuple[np.ndarray, np.ndarray]:
    from ffcv.reader import Reader

    reader = Reader(str(path))
    data = np.fromfile(path, np.uint8)
    images = []
    for mode, width, height, pointer in reader.metadata["f0"].tolist():
        assert mode == 1  # raw
        images.append(data[pointer : pointer + height * width * 3].reshape(height, width, 3))
    return np.stack(images), reader.metadata["f1"]


def test_import_is_cheap() -> None:
    heavy = ["numpy", "PIL", "torch", "ffcv", "sklearn", "pooch", "requests"]
    code = f"import sys, fastpeer.data_prep; sys.exit(str([m for m in {heavy} if m in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == "[]"


def test_png_pixels_come_back_in_order(prepared: Path) -> None:
    images, labels = read_beton(prepared / "train.beton")
    # Plain order of strings: "Dog" before "cat", "10.png" before "2.png".
    order = sorted(range(64), key=lambda number: f"{number}.png")
    expected = [pixels(64 + number) for number in order] + [pixels(number) for number in order]
    assert np.array_equal(images, np.stack(expected))
    assert labels.tolist() == [0] * 64 + [1] * 64


def test_dataset_json(prepared: Path, photos: Path) -> None:
    manifest = json.loads((prepared / "dataset.json").read_text())
    images, labels = read_beton(prepared / "train.beton")
    stored = b"".join(
        image.tobytes() + int(label).to_bytes(8, "little")
        for image, label in zip(images, labels, strict=True)
    )
    data = (prepared / "train.beton").read_bytes()
    assert manifest["splits"]["train"] == {
        "file": "train.beton",
        "count": 128,
        "per_class": [64, 64],
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "content_sha256": hashlib.sha256(stored).hexdigest(),
    }
    assert manifest["splits"]["test"]["per_class"] == [1, 1]
    names = sorted(
        path.relative_to(photos).as_posix() for path in photos.rglob("*.*") if path.name != ".DS_Store"
    )
    lines = "".join(f"{name}\t{(photos / name).stat().st_size}\n" for name in names)
    assert manifest["source"] == {
        "name": "photos",
        "kind": "folder",
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }
    rest = {key: manifest[key] for key in manifest.keys() - {"splits", "source"}}
    assert rest == {
        "format": 1,
        "name": "folder",
        "classes": ["Dog", "cat"],
        "size": [8, 8],
        "written_by": f"fastpeer {fastpeer.__version__}",
        "ffcv": version("ffcv"),
    }


def test_worker_count_does_not_matter_and_force_replaces(
    prepared: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "dataset.json").write_text('{"format": 1, "splits": {}}')
    (out / "test.beton").write_text("old")
    stages: dict[str, tuple[int, int]] = {}
    summary = prepare(
        PrepOptions(dataset="folder", source=photos, out=out, workers=2, force=True),
        lambda stage, done, total: stages.update({stage: (done, total)}),
    )
    before, after = (json.loads((folder / "dataset.json").read_text()) for folder in (prepared, out))
    for split in ("train", "test"):
        assert before["splits"][split]["content_sha256"] == after["splits"][split]["content_sha256"]
    assert stages["write train"] == (128, 128)
    assert summary == PrepSummary(
        out=out,
        classes=2,
        counts={"train": 128, "test": 2},
        size=(8, 8),
        bytes=sum((out / f"{split}.beton").stat().st_size for split in ("train", "test")),
        seconds=summary.seconds,
    )
    assert sorted(os.listdir(out)) == ["dataset.json", "test.beton", "train.beton"]
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_drawn_test_split_and_notes_are_recorded(tmp_path: Path) -> None:
    names = [f"{name}/{number}.png" for name in ("ant", "bee") for number in range(5)]
    source = write_files(tmp_path / "s", {f"train/{name}": encode(pixels(0)) for name in names})
    Image.new("RGBA", (8, 8)).save(source / "train/ant/0.png")
    options = PrepOptions(
        dataset="folder", source=source, out=tmp_path / "out", workers=2, test_fraction=0.4, test_seed=3
    )
    summary = prepare(options)
    assert summary.counts == {"train": 6, "test": 4}
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert manifest["test_draw"] == {"fraction": 0.4, "seed": 3}
    assert manifest["notes"] == list(summary.notes)
    assert summary.notes == ("transparent images, whose colours are kept and whose alpha is dropped: 1",)


@given(count=st.integers(1, 5000), side=st.integers(1, 300), workers=st.integers(1, 64))
def test_space_is_enough_for_the_pixels(count: int, side: int, workers: int) -> None:
    form = PixelForm(side, side, resize=True)
    assert file_bytes(count, form, workers) > count * side * side * 3
    assert page_size(form) >= side * side * 3


def test_space_is_not_exceeded(prepared: Path) -> None:
    size = (prepared / "train.beton").stat().st_size
    assert size <= file_bytes(128, PixelForm(8, 8, resize=False), 1) < 2 * size
