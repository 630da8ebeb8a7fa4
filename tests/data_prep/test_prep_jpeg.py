"""Image folders that keep their own sizes, as JPEG."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prep_files import encode, pixels, tiny_files, write_files

from fastpeer.data_prep import PrepOptions, prepare
from fastpeer.data_prep.images import JpegForm, decode
from fastpeer.data_prep.writer.space import jpeg_file_bytes, jpeg_page_size
from fastpeer.errors import UserError

pytestmark = pytest.mark.usefixtures("clean")

FORM = JpegForm(quality=90, max_side=None)
SMOOTH = Image.fromarray(pixels(1, 4, 5)).resize((75, 60), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def options(source: Path, out: Path, **others: Any) -> PrepOptions:
    return PrepOptions(dataset="folder", source=source, out=out, jpeg=True, **others)


def stored(path: Path) -> list[tuple[bytes, int, int]]:
    """Return the bytes, height and width of each sample, and require FFCV's mode for JPEG."""
    from ffcv.fields import RGBImageField
    from ffcv.reader import Reader

    reader, data = Reader(str(path)), path.read_bytes()
    assert type(reader.handlers["image"]) is RGBImageField
    sizes = dict(zip(reader.alloc_table["ptr"], reader.alloc_table["size"], strict=True))
    found = []
    for mode, width, height, start in reader.metadata["f0"].tolist():
        assert mode == 0
        found.append((data[start : start + int(sizes[start])], height, width))
    return found


def many_kinds() -> dict[str, bytes]:
    return {
        "baseline.jpg": saved(SMOOTH, quality=70),
        "exif.jpg": saved(SMOOTH, exif=_rotated()),
        "fine.jpg": saved(SMOOTH, quality=100, subsampling=0),
        "grey.jpg": saved(SMOOTH.convert("L")),
        "cmyk.jpg": saved(SMOOTH.convert("CMYK")),
        "progressive.jpg": saved(SMOOTH, progressive=True),
        "rgb.png": saved(SMOOTH, "PNG"),
        "rgba.png": saved(SMOOTH.convert("RGBA"), "PNG"),
        "grey.png": saved(SMOOTH.convert("L"), "PNG"),
        "palette.gif": saved(SMOOTH, "GIF", comment=b"made by hand"),
    }


KEPT = ("baseline.jpg", "exif.jpg", "fine.jpg", "grey.jpg")


def _rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize("name", many_kinds())
def test_baseline_files_are_taken_as_they_are_and_others_encoded(name: str) -> None:
    data = many_kinds()[name]
    jpeg = FORM.stored(data, name)
    assert (jpeg.data == data) == (name in KEPT)
    assert (jpeg.height, jpeg.width) == (60, 75)
    with Image.open(io.BytesIO(jpeg.data)) as image:
        assert image.format == "JPEG"
        assert "progressive" not in image.info
    ours, theirs = (np.asarray(decode(some, name)).astype(int) for some in (jpeg.data, data))
    assert np.abs(ours - theirs).mean() < 6


@pytest.mark.parametrize(("limit", "size"), [(None, (75, 60)), (75, (75, 60)), (74, (74, 59)), (10, (10, 8))])
def test_longer_side_is_scaled_down_to_the_limit_never_up(limit: int | None, size: tuple[int, int]) -> None:
    jpeg = JpegForm(90, limit).stored(saved(SMOOTH), "x.jpg")
    assert (jpeg.width, jpeg.height) == size == decode(jpeg.data, "x.jpg").size


def test_quality_is_that_asked_for() -> None:
    coarse, fine = (JpegForm(some, None).stored(saved(SMOOTH, "PNG"), "x.png") for some in (10, 95))
    assert len(coarse.data) < len(fine.data)
    assert fine == JpegForm(95, None).stored(saved(SMOOTH, "PNG"), "x.png")


def test_narrow_images_keep_a_pixel() -> None:
    jpeg = JpegForm(90, 100).stored(saved(Image.new("RGB", (900, 2))), "x.jpg")
    assert (jpeg.width, jpeg.height) == (100, 1)


def test_image_that_is_too_large_for_a_jpeg_is_refused() -> None:
    with pytest.raises(UserError, match=r"^x\.png has 70000x1 pixels, .*: pass --max-side$"):
        FORM.stored(saved(Image.new("RGB", (70000, 1)), "PNG"), "x.png")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    kinds = many_kinds()
    files = {f"train/a/{name}": data for name, data in kinds.items()}
    files |= {f"train/b/{number:03}.jpg": encode(pixels(number, 9, 7), "JPEG") for number in range(120)}
    files |= {f"val/{name}/0.jpg": kinds["baseline.jpg"] for name in "ab"}
    return write_files(tmp_path_factory.mktemp("jpeg") / "photos", files)


@pytest.fixture(scope="module")
def written_alone(photos: Path) -> Path:
    """The data set of a single worker; not to be changed."""
    return prepare(options(photos, photos.parent / "alone", workers=1, max_side=500)).out


def test_what_is_written(photos: Path, written_alone: Path, tmp_path: Path) -> None:
    summary = prepare(options(photos, tmp_path / "out", workers=2, max_side=500))
    assert (summary.size, summary.counts) == (None, {"train": 130, "test": 2})
    samples = stored(tmp_path / "out" / "train.beton")
    files = sorted((photos / "train" / "a").iterdir()) + sorted((photos / "train" / "b").iterdir())
    for (data, height, width), file in zip(samples, files, strict=True):
        assert (data == file.read_bytes()) == (file.name in KEPT or file.parent.name == "b")
        assert decode(data, file.name).size == (width, height)
    manifest = json.loads((tmp_path / "out" / "dataset.json").read_text())
    kept = {key: manifest[key] for key in ("format", "size", "encoding", "quality", "max_side")}
    assert kept == {"format": 1, "size": None, "encoding": "jpeg", "quality": 90, "max_side": 500}
    other = json.loads((written_alone / "dataset.json").read_text())
    for split in ("train", "test"):
        assert other["splits"][split]["content_sha256"] == manifest["splits"][split]["content_sha256"]


def test_tiny_imagenet_keeps_its_files(tmp_path: Path) -> None:
    source = write_files(tmp_path / "t", tiny_files())
    prepare(PrepOptions(dataset="tiny", source=source, out=tmp_path / "out", jpeg=True, workers=1))
    files = [
        source / f"tiny-imagenet-200/train/{name}/images/{name}_{number}.JPEG"
        for name in ("n03", "n01", "n02")
        for number in range(2)
    ]
    assert [data for data, _, _ in stored(tmp_path / "out" / "train.beton")] == [
        file.read_bytes() for file in files
    ]


FAULTS = {
    "broken": (b"\xff\xd8\xff\xe0rubbish", "b/050.jpg"),
    "cut off": (saved(SMOOTH)[:-100], "b/050.jpg is broken"),
    "empty": (b"", "b/050.jpg is empty"),
    "no image": (b"hello", "b/050.jpg is not an image"),
}


# Each takes a run of the writer; how files are told apart is tested without one.
@pytest.mark.parametrize(
    "fault",
    ["cut off", *(pytest.param(one, marks=pytest.mark.soak) for one in ("broken", "empty", "no image"))],
)
def test_bad_image_is_named_and_leaves_nothing(photos: Path, tmp_path: Path, fault: str) -> None:
    data, words = FAULTS[fault]
    source = tmp_path / "photos"
    for file in photos.rglob("*.*"):
        (source / file.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
        (source / file.relative_to(photos)).write_bytes(file.read_bytes())
    (source / "train/b/050.jpg").write_bytes(data)
    with pytest.raises(UserError, match=words) as refusal:
        prepare(options(source, tmp_path / "out", workers=2))
    assert "\n" not in str(refusal.value)
    assert os.listdir(tmp_path) == ["photos"]


def test_interruption_leaves_nothing(photos: Path, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(options(photos, tmp_path / "out", workers=1), interrupt)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 8}, "--size .* leave one of them out"),
        ({"jpeg": False, "max_side": 8}, "pass --jpeg too"),
        ({"jpeg": False, "quality": 8}, "pass --jpeg too"),
        ({"max_side": 0}, "--max-side 0 is out of range"),
        ({"max_side": 5000}, "--max-side 5000 is out of range"),
        ({"quality": 0}, "--quality 0 is out of range"),
        ({"quality": 101}, "--quality 101 is out of range"),
        ({"dataset": "digits", "source": None}, "--dataset folder and tiny"),
        ({"dataset": "cifar10"}, "--dataset folder and tiny"),
    ],
)
def test_options(photos: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    given = {"dataset": "folder", "source": photos, "out": tmp_path / "out", "jpeg": True} | changes
    with pytest.raises(UserError, match=words):
        prepare(PrepOptions(**given))


def test_file_that_grows_beyond_a_page_is_refused_by_name(tmp_path: Path) -> None:
    # Noise of one bit a pixel: hardly any other file grows so much.
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (2000, 2000), np.uint8) * 255)
    files = {
        "train/a/0.png": saved(noise.convert("1"), "PNG"),
        "train/b/0.jpg": saved(SMOOTH),
        "test/a/0.jpg": saved(SMOOTH),
    }
    source = write_files(tmp_path / "s", files)
    with pytest.raises(UserError, match=r"^s/train/a/0\.png takes \d+ MB as JPEG and \d+ fit: .*--max-side"):
        prepare(options(source, tmp_path / "out", workers=1, quality=100))


def test_space_is_enough(photos: Path, written_alone: Path) -> None:
    sizes = [file.stat().st_size for file in (photos / "train").rglob("*.*")]
    assert (written_alone / "train.beton").stat().st_size <= jpeg_file_bytes(sizes, 1)
    assert jpeg_page_size([10**7]) >= 4 * 10**7
