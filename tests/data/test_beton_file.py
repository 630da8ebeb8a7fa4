"""A file of a stranger's is refused in one line, or read without harm: FFCV never sees a contradiction."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from beton_files import Beton, jpeg_file, mutations, raw_file

from fastpeer.data.beton_file import map_samples
from fastpeer.data.dataset import PreparedDataset
from fastpeer.data.jpeg_headers import jpeg_sizes
from fastpeer.data.raw import RawLoader
from fastpeer.data.split import open_split
from fastpeer.errors import UserError
from fastpeer.files import file_sha256
from tests.data_prep.prep_files import encode, pixels

KINDS = {"raw": raw_file, "jpeg": jpeg_file, "jpeg of one size": lambda: jpeg_file(side=16)}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_whole_file_is_accepted(tmp_path: Path, kind: str) -> None:
    original = KINDS[kind]()
    samples = map_samples(written(tmp_path / "a.beton", original.tobytes()))
    assert samples.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (samples.all_raw, samples.all_jpeg) == (kind == "raw", kind != "raw")
    assert len(samples.sizes()) == (6 if kind == "jpeg" else 1)


def set_to(part: str, name: str, value: int, row: int = 0) -> Callable[[Beton], None]:
    def change(file: Beton) -> None:
        array = getattr(file, part)
        (array["image"] if name in ("mode", "width", "height", "pointer") and part == "rows" else array)[
            name
        ][row] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_to("header", "page_size", 0), "power of two, got 0"),
        (set_to("header", "page_size", 4095), "power of two, got 4095"),
        (set_to("header", "fields", 65535), "at most 256 fields"),
        (set_to("header", "samples", 2**64 - 1), "too large|buffer"),
        (set_to("header", "allocations", 2**64 - 1), "table of allocations"),
        (set_to("header", "allocations", 100), "table of allocations"),
        (set_to("table", "pointer", 2**64 - 8, 2), "beyond its end"),
        (set_to("table", "size", 2**64 - 8, 2), "beyond its end"),
        (set_to("table", "pointer", 8, 2), "beyond its end or in its header"),
        (set_to("table", "size", 193, 2), "two of its allocations overlap"),
        (set_to("table", "sample", 3, 2), "image 2 has no bytes of its own"),
        (set_to("table", "size", 0, 2), "image 2 has no bytes of its own"),
        (set_to("table", "size", 191, 2), "image 2 does not take the bytes of its pixels"),
        (set_to("rows", "pointer", 2**63, 4), "image 4 has no bytes of its own"),
        (set_to("rows", "pointer", 0, 4), "image 4 has no bytes of its own"),
        (set_to("rows", "mode", 2, 5), "image 5 is stored in no known mode"),
        (set_to("rows", "height", 0, 1), "image 1 must have 1 to"),
        (set_to("rows", "height", 65535, 1), "image 1 does not take the bytes of its pixels"),
        (set_to("fields", "kind", 1), "must have an image"),
    ],
)
def test_contradiction_is_named(tmp_path: Path, change: Callable[[Beton], None], words: str) -> None:
    file = raw_file()
    change(file)
    with pytest.raises(UserError, match=words) as refusal:
        map_samples(written(tmp_path / "a.beton", file.tobytes()))
    assert "\n" not in str(refusal.value)


def test_two_fields_of_one_name_are_refused(tmp_path: Path) -> None:
    file = raw_file()
    # To FFCV, which reads up to the first zero, both are called image.
    file.fields["name"][1] = np.frombuffer(b"image\0label".ljust(16, b"\0"), np.uint8)
    with pytest.raises(UserError, match="must have an image"):
        map_samples(written(tmp_path / "a.beton", file.tobytes()))


def test_jpeg_of_another_size_than_its_row_is_refused(tmp_path: Path) -> None:
    file = jpeg_file()
    file.rows["image"]["height"][3] += 1
    with pytest.raises(UserError, match="image 3 is no baseline JPEG of the size"):
        map_samples(written(tmp_path / "a.beton", file.tobytes()))
    file.rows["image"]["height"][3] = 65000
    file.rows["image"]["width"][3] = 65000
    with pytest.raises(UserError, match="image 3 must have 1 to 80,000,000 pixels"):
        map_samples(written(tmp_path / "a.beton", file.tobytes()))


def test_sizes_of_jpegs_are_those_of_their_headers() -> None:
    whole = encode(pixels(0, 30, 50), "JPEG")
    padded = whole[:2] + b"\xff\xff" + whole[2:]
    commented = whole[:2] + b"\xff\xfe\x00\x05abc" * 700 + whole[2:]
    grey = encode(pixels(0, 30, 50)[..., 0], "JPEG")
    progressive = whole.replace(b"\xff\xc0", b"\xff\xc2")
    none = [whole[:100], b"\xff\xd8", b"", whole[:2] + b"\0" + whole[2:], progressive]
    files = [whole, padded, commented, grey, *none, whole[:2] + b"\xff\xfe\x00\x00" + whole[2:]]
    lengths = np.array([len(file) for file in files])
    ends = np.cumsum(lengths)
    sizes = jpeg_sizes(np.frombuffer(b"".join(files), np.uint8), ends - lengths, ends)
    assert sizes.tolist() == [[30, 50]] * 4 + [[0, 0]] * 6


def dataset_of(path: Path, classes: int = 3, count: int = 6, side: int = 8) -> PreparedDataset:
    facts = {"file": path.name, "count": count, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    return PreparedDataset(path.parent, "other", tuple("abcdef"[:classes]), (side, side), {"train": facts})


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"classes": 2}, "labels must be 0 to 1.*got 2 for image 2"),
        ({"count": 7}, "must hold 7 images"),
        ({"side": 9}, "must have 9x9 pixels, as dataset.json says, got 8x8"),
    ],
)
@pytest.mark.parametrize("reader", ["numpy", "ffcv"])
def test_description_that_contradicts_the_file_is_refused(
    tmp_path: Path, facts: dict[str, int], words: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.beton", raw_file().tobytes())
    # What FFCV would need seconds to compile is not what is looked at.
    monkeypatch.setattr("fastpeer.data.split.BetonLoader", RawLoader)
    with pytest.raises(UserError, match=words):
        open_split(dataset_of(path, **facts), "train", 4, reader=reader)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_changed_file_is_refused_or_has_the_same_images(tmp_path: Path, kind: str) -> None:
    refused = try_all(tmp_path / "a.beton", KINDS[kind](), seed=1, count=100)
    assert refused > 50


def try_all(path: Path, original: Beton, seed: int, count: int) -> int:
    """Return how many of the changed files were refused; the others hold as many images of the same sizes."""
    expected = map_samples(written(path, original.tobytes())).sizes().tolist()
    refused = 0
    for change, data in mutations(original, seed, count):
        # A new file: the old one is mapped still.
        path.unlink()
        try:
            samples = map_samples(written(path, data))
        except UserError:
            refused += 1
        else:
            assert (len(samples.labels), samples.sizes().tolist()) == (6, expected), change
    return refused


READ = """
import sys
from pathlib import Path
import numpy as np
from fastpeer.data.beton import BetonLoader, JpegLoader
from fastpeer.data.beton_file import map_samples
from fastpeer.data.raw import RawLoader
from fastpeer.data.threaded import ThreadedCropLoader, ThreadedLoader
from fastpeer.errors import UserError
def read(loader):
    return [[part.numpy().copy() for part in batch] for batch in loader.batches(np.arange(6))]
for line in sys.stdin:
    path = Path(line.strip())
    try:
        samples = map_samples(path)
        jpegs = len(samples.sizes()) > 1
        ffcvs = read(JpegLoader(path, 4, 16, (0.1, 1)) if jpegs else BetonLoader(path, 4))
        if samples.all_raw:
            own = RawLoader(path, 4)
        else:
            own = ThreadedCropLoader(path, 4, 16, (0.1, 1)) if jpegs else ThreadedLoader(path, 4)
        # Refuses damaged JPEGs too, for which FFCV gives whatever is in the memory.
        same = all((a == b).all() for x, y in zip(read(own), ffcvs) for a, b in zip(x, y))
        print("read" if same else "different", path.name, flush=True)
    except UserError as error:
        print("refused", path.name, flush=True)
"""


@pytest.mark.soak
def test_no_changed_file_ends_the_interpreter(tmp_path: Path) -> None:
    """Read each of 510 changed files by FFCV in a process of its own kind; one that ends is a failure."""
    for kind, original in KINDS.items():
        for number, (_, data) in enumerate(mutations(original(), seed=2, count=170)):
            written(tmp_path / f"{kind}-{number}.beton", data)
    files = sorted(tmp_path.glob("*.beton"))
    process = subprocess.run(
        [sys.executable, "-c", READ],
        input="".join(f"{file}\n" for file in files),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = process.stdout.splitlines()
    assert process.returncode == 0, (process.returncode, files[len(lines)], process.stderr[-500:])
    counts = {word: sum(line.startswith(word) for line in lines) for word in ("refused", "read", "different")}
    print(counts)
    assert counts["different"] == 0
    assert counts["refused"] + counts["read"] == len(files) == 510
