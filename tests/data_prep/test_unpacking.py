"""An archive or image that grows beyond measure is refused before it does."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prep_files import encode, image_files, pixels, write_files, write_tar, write_zip

from fastpeer.data_prep import archive, images, unpacking
from fastpeer.data_prep.archive import open_tree
from fastpeer.data_prep.images import JpegForm, decode
from fastpeer.errors import UserError

pytestmark = pytest.mark.usefixtures("clean")


def refused(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        open_tree(path)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of kilobytes: what is looked at is where they hold."""
    monkeypatch.setattr(unpacking, "SMALL", 100_000)
    monkeypatch.setattr(unpacking, "MAX_FILE", 150_000)


@pytest.mark.usefixtures("little")
@pytest.mark.parametrize("form", ["w:gz", "w:xz", "w:bz2", "zip"])
def test_bomb(tmp_path: Path, form: str) -> None:
    path, files = tmp_path / "a", {f"{number}.bmp": bytes(90_000) for number in range(20)}
    write_zip(path, files) if form == "zip" else write_tar(path, files, form)
    refused(path, "a unpacks to more than .*, 100 times its size: if you trust it")


@pytest.mark.usefixtures("little")
def test_files_in_ignored_folders_count_too(tmp_path: Path) -> None:
    files = {f".hidden/{number}.bmp": bytes(90_000) for number in range(20)}
    refused(write_tar(tmp_path / "a.tar.gz", files), "a.tar.gz unpacks to more than")
    refused(write_zip(tmp_path / "a.zip", files), "a.zip unpacks to more than")


@pytest.mark.usefixtures("little")
def test_large_file(tmp_path: Path) -> None:
    noise = {"train/a/0.bmp": np.random.default_rng(0).bytes(160_000)}
    refused(write_tar(tmp_path / "a.tar", noise, "w"), "0.bmp in a.tar has 160,000 bytes, more than")
    for path in (write_zip(tmp_path / "a.zip", noise), write_files(tmp_path / "folder", noise)):
        tree = open_tree(path)
        with pytest.raises(UserError, match=r"0\.bmp.* has 160,000 bytes, more than"):
            tree.read("train/a/0.bmp")


@pytest.mark.usefixtures("little")
def test_name_that_is_as_long_as_a_bomb(tmp_path: Path) -> None:
    refused(write_tar(tmp_path / "a.tar.gz", {"a" * 200_000: b""}), "a.tar.gz unpacks to more than")


def test_members_that_overlap(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": b"abc" * 500, "b.png": np.random.bytes(5000)})
    data = bytearray(path.read_bytes())
    # In the list at the end, both begin where the first does.
    second = data.rindex(b"PK\x01\x02")
    first = data.index(b"PK\x01\x02")
    data[second + 20 : second + 46 - 18] = data[first + 20 : first + 46 - 18]
    data[second + 20 : second + 24] = struct.pack("<I", 5500)
    path.write_bytes(data)
    refused(path, "overlap|Overlapped|do not use|damaged")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_name_that_stands_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file, tarfile.open(tmp_path / "a.tar", "w") as tar:
        for _ in range(2):
            file.writestr("train/a/0.png", b"")
            tar.addfile(tarfile.TarInfo("train/./a/0.png"))
    for name in ("a.zip", "a.tar"):
        refused(tmp_path / name, f"{name} holds train/a/0.png twice")


def test_file_without_a_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"": b"x"})
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file, file.open(zipfile.ZipInfo(""), "w") as member:
        member.write(b"x")
    for name in ("a.zip", "a.tar"):
        refused(tmp_path / name, f"{name} holds a file without a name: do not use this archive")


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFLNK])
def test_what_is_no_plain_file_in_a_zip(tmp_path: Path, kind: int) -> None:
    member = zipfile.ZipInfo("train/a/odd.png")
    member.external_attr = (kind | 0o600) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(member, b"")
    refused(tmp_path / "a.zip", "odd.png in a.zip is a link or device")


@pytest.mark.parametrize("form", ["w", "w:gz", "w:xz", "w:bz2"])
def test_whole_tars_are_read(tmp_path: Path, form: str) -> None:
    files = image_files(["a", "b"])
    tree = open_tree(write_tar(tmp_path / "a.tar", files, form))
    assert {name: tree.read(name) for name in tree.sizes} == files


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header declares a size; its pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_pixels_are_counted_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    for sides in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (10_000, 8_001)):
        with pytest.raises(UserError, match=r"a\.png (declares|is broken)"):
            decode(png_of(*sides) + encode(pixels(0))[33:], "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    for form in ("PNG", "JPEG", "GIF", "BMP"):
        with pytest.raises(UserError, match="declares 8x8 pixels, more than 63: scale it down"):
            decode(encode(pixels(0), form), "a")
        with pytest.raises(UserError, match="declares 8x8 pixels"):
            JpegForm(90, None).stored(encode(pixels(0), form), "a")


def test_postscript_is_no_image() -> None:
    data = io.BytesIO()
    Image.fromarray(pixels(0)).save(data, "EPS")
    with pytest.raises(UserError, match="is not an image that can be read"):
        decode(data.getvalue(), "a.eps")


def test_headers_without_end(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type = tarfile.GNUTYPE_LONGNAME
    (tmp_path / "a.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) * 5000)
    refused(tmp_path / "a.tar", "a.tar is cut off, damaged")


def test_bounds_are_beyond_what_is_official() -> None:
    assert unpacking.MAX_FILE > 160 << 20
    assert archive.MAX_IN_MEMORY > unpacking.MAX_FILE
