"""Every bad input gives one line that names the file, and leaves nothing behind."""

from __future__ import annotations

import io
import os
import pickle
import stat
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prep_files import (
    CIFAR10,
    cifar10_files,
    cifar100_files,
    encode,
    image_files,
    pixels,
    tiny_files,
    write_files,
    write_tar,
    write_zip,
)

from fastpeer.data_prep import PrepOptions, prepare
from fastpeer.data_prep.archive import open_tree, safe_parts
from fastpeer.data_prep.images import decode
from fastpeer.data_prep.sources import open_source
from fastpeer.data_prep.sources.source import DrawnPart
from fastpeer.errors import UserError

pytestmark = pytest.mark.usefixtures("clean")


def refused(*parts: str) -> pytest.RaisesExc[UserError]:
    """Expect a UserError of one line that holds all the parts."""

    def check(error: UserError) -> bool:
        text = str(error)
        return "\n" not in text and ": " in text and all(part in text for part in parts)

    return pytest.RaisesExc(UserError, check=check)


def read(dataset: str, path: Path, size: int | None = None) -> None:
    """Open a source and decode all of it."""
    source, _ = open_source(dataset, path, size)
    for split in (source.train, source.test):
        for index in range(len(split.labels)):
            split[index]


FOLDER_FAULTS: dict[str, tuple[dict[str, bytes | None], tuple[str, ...]]] = {
    "broken": ({"train/cat/1.png": b"\x89PNG\r\n\x1a\nrubbish"}, ("train/cat/1.png",)),
    "no image": ({"train/cat/notes.txt": b"hello"}, ("train/cat/notes.txt", "not an image")),
    "empty": ({"test/cat/0.png": b""}, ("test/cat/0.png", "empty")),
    "cut off": ({"train/cat/1.png": encode(pixels(3), "JPEG")[:-40]}, ("train/cat/1.png", "truncated")),
    "other size": (
        {"train/dog/2.png": encode(pixels(3, 9, 7))},
        ("dog/2.png", "7x9", "cat/0.png", "8x8", "--size"),
    ),
    "16 bit": ({"train/dog/2.png": b"16"}, ("train/dog/2.png", "8 bits")),
    "empty class": ({"train/emu/.keep": b""}, ("train/emu", "no images")),
    "class only in test": ({"test/emu/0.png": encode(pixels(3))}, ("test/emu", "train/ lacks")),
    "no class": ({"train/0.png": encode(pixels(3))}, ("train/0.png", "no class folder")),
    "no test": ({"test/cat/0.png": None, "test/dog/0.png": None}, ("test/<class>/",)),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_image_folder(tmp_path: Path, fault: str) -> None:
    changes, parts = FOLDER_FAULTS[fault]
    files = image_files(["cat", "dog"]) | changes
    deep = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(deep, "PNG")
    kept = {
        name: deep.getvalue() if data == b"16" else data for name, data in files.items() if data is not None
    }
    with refused("photos", *parts):
        read("folder", write_files(tmp_path / "photos", kept))


@pytest.mark.parametrize("draw", [None, DrawnPart(0.5, 0)])
def test_one_class_only(tmp_path: Path, draw: DrawnPart | None) -> None:
    source = write_files(tmp_path / "photos", image_files(["cat"], test="test" if draw is None else "train"))
    out, fraction = tmp_path / "out", draw and draw.fraction
    with refused("at least 2 classes", "cat"):
        prepare(PrepOptions(dataset="folder", source=source, out=out, test_fraction=fraction))
    assert not out.exists()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (image_files(["a", "b"]), ("test/", "leave --test-fraction out")),
        (image_files(["a", "b"], test="VAL"), ("VAL/", "leave --test-fraction out")),
        ({"notes.txt": b"x"}, ("notes.txt", "no class folder")),
        ({"a/0.png": encode(pixels(0)), "b/.keep": b""}, ("b", "no images")),
    ],
)
def test_no_test_images_can_be_drawn(tmp_path: Path, files: dict[str, bytes], words: tuple[str, ...]) -> None:
    with refused(*words):
        open_source("folder", write_files(tmp_path / "photos", files), None, DrawnPart(0.5, 0))


def test_odd_and_lacking_class_names(tmp_path: Path) -> None:
    with refused("plane, zebra", "--dataset folder"):
        read("cifar10", write_files(tmp_path / "odd", image_files([*CIFAR10[1:], "plane", "zebra"])))
    with refused("truck", "lacks"):
        read("cifar10", write_files(tmp_path / "few", image_files(CIFAR10[:9])))


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", "tiny", "folder"])
def test_nothing_of_the_kind(tmp_path: Path, dataset: str) -> None:
    with refused("data", "pass"):
        read(dataset, write_files(tmp_path / "data", {"a/b/c.txt": b"x"}))
    (tmp_path / "picture.zip").write_bytes(b"\x89PNG\r\n")
    with refused("picture.zip is an image", "--source"):
        read(dataset, tmp_path / "picture.zip")
    with refused("song.mp3", "no zip or tar"):
        read(dataset, write_files(tmp_path, {"song.mp3": b"ID3" * 999}) / "song.mp3")


@pytest.mark.parametrize("asked", ["folder", "cifar10", "cifar100", "tiny"])
@pytest.mark.parametrize(
    ("held", "files"), [("cifar10", cifar10_files()), ("cifar100", cifar100_files()), ("tiny", tiny_files())]
)
def test_official_files_under_another_name(
    tmp_path: Path, asked: str, held: str, files: dict[str, bytes]
) -> None:
    path = write_files(tmp_path / "data", files)
    if asked != held:
        with refused("data", f"pass --dataset {held}"):
            read(asked, path)


TINY = "tiny-imagenet-200/"
TINY_FAULTS: dict[str, tuple[dict[str, bytes], tuple[str, ...]]] = {
    "broken": ({"train/n01/images/n01_1.JPEG": b"\xff\xd8\xff\xe0"}, ("n01_1.JPEG",)),
    "empty list": ({"wnids.txt": b"\n"}, ("wnids.txt",)),
    "class without images": ({"wnids.txt": b"n01\nn02\nn03\nn09"}, ("train/n09",)),
    "class not in list": ({"train/n77/images/a.JPEG": b"x"}, ("n77", "wnids.txt")),
    "image without line": ({"val/images/val_55.JPEG": b"x"}, ("val_55.JPEG", "val_annotations.txt")),
    "in another class": (
        {"val/n03/val_77.JPEG": b"x", "val/val_annotations.txt": b"val_77.JPEG\tn02\n"},
        ("val/n03/val_77.JPEG", "another class"),
    ),
    "unknown label": ({"val/val_annotations.txt": b"val_2.JPEG\tn55\t1"}, ("line 1",)),
    "no label": ({"val/val_annotations.txt": b"val_2.JPEG"}, ("line 1",)),
}


@pytest.mark.parametrize("fault", TINY_FAULTS)
def test_tiny(tmp_path: Path, fault: str) -> None:
    changes, parts = TINY_FAULTS[fault]
    files = tiny_files() | {TINY + name: data for name, data in changes.items()}
    with refused("t.zip", *parts):
        read("tiny", write_zip(tmp_path / "t.zip", files))


class Exploit:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_malicious_pickle_is_not_run(tmp_path: Path) -> None:
    files = cifar10_files()
    content = {b"data": Exploit(tmp_path / "harm"), b"labels": []}
    files["cifar-10-batches-py/data_batch_2"] = pickle.dumps(content)
    with refused("data_batch_2", "posix.mkdir", "do not use"):
        read("cifar10", write_tar(tmp_path / "c.tar.gz", files))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("label", [10, -1])
def test_label_out_of_range(tmp_path: Path, label: int) -> None:
    with refused("data_batch_3", "image 1", str(label)):
        read("cifar10", write_tar(tmp_path / "c.tar.gz", cifar10_files(label=label)))


CIFAR_FAULTS = {
    "no dict": pickle.dumps([1]),
    "no array": pickle.dumps({b"data": [1], b"labels": [1]}),
    "wrong shape": pickle.dumps({b"data": np.zeros((2, 5), np.uint8), b"labels": [1, 1]}),
    "fewer labels": pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
    "cut off": pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 1]})[:-99],
    "empty": b"",
}


@pytest.mark.parametrize("fault", CIFAR_FAULTS)
def test_cifar_batch(tmp_path: Path, fault: str) -> None:
    files = cifar10_files() | {"cifar-10-batches-py/data_batch_4": CIFAR_FAULTS[fault]}
    with refused("data_batch_4", "fetch"):
        read("cifar10", write_tar(tmp_path / "c.tar", files, "w"))


@pytest.mark.parametrize("lacking", ["data_batch_5", "test_batch"])
def test_cifar_file_lacking(tmp_path: Path, lacking: str) -> None:
    files = {name: data for name, data in cifar10_files().items() if not name.endswith(lacking)}
    with refused(lacking, "lacks"):
        read("cifar10", write_tar(tmp_path / "c.tar", files, "w"))


@pytest.mark.parametrize("form", ["w:gz", "w:xz", "w:bz2", "w", "zip"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.9])
def test_cut_off_archive(tmp_path: Path, form: str, kept: float) -> None:
    path, files = tmp_path / "archive", cifar10_files()
    whole = (write_zip(path, files) if form == "zip" else write_tar(path, files, form)).read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with refused("archive", "fetch it again"):
        read("cifar10", path)


def test_tar_cut_between_members(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "photos.tar", image_files(["a"], 9), "w")
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[-1].offset
    os.truncate(path, cut)
    with refused("photos.tar", "the end is missing"):
        read("folder", path)


@given(flip=st.integers(0, 10**6))
def test_damaged_byte_is_found_or_harmless(tmp_path_factory: pytest.TempPathFactory, flip: int) -> None:
    folder = tmp_path_factory.mktemp("flip")
    path = write_zip(folder / "photos.zip", image_files(["a"], 2))
    data = bytearray(path.read_bytes())
    data[flip % len(data)] ^= 0x55
    path.write_bytes(data)
    with suppress(UserError):
        read("folder", path)


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "train/../../x.png", "..\\x.png", "C:\\x.png"])
def test_member_that_escapes(tmp_path: Path, name: str) -> None:
    for path in (write_zip(tmp_path / "a.zip", {name: b""}), write_tar(tmp_path / "a.tar.gz", {name: b""})):
        with refused(name, path.name, "do not use"):
            open_tree(path)


def test_member_that_is_a_link(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("train/a/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
        member = tarfile.TarInfo("train/a/link.png")
        member.type, member.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.addfile(member)
        with refused("link.png", "do not use"):
            open_tree(tmp_path / "a.tar")
    with refused("link.png", "do not use"):
        open_tree(tmp_path / "a.zip")


@given(st.text())
def test_no_safe_name_leads_out(name: str) -> None:
    try:
        parts = safe_parts(name, "a.zip")
    except UserError:
        return
    root = Path("/some/folder")
    assert Path(os.path.normpath(root.joinpath(*parts))).is_relative_to(root)


@given(st.binary(max_size=64))
def test_rubbish_is_no_image(data: bytes) -> None:
    with refused("x.png"):
        decode(data, "x.png")


def test_fifo_in_a_folder(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photos", image_files(["a"], 1))
    os.mkfifo(source / "train/a/pipe.png")
    with refused("train/a/pipe.png", "no regular file"):
        read("folder", source)


def test_tar_larger_than_the_memory_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastpeer.data_prep.archive.MAX_IN_MEMORY", 1000)
    with refused("a.tar", "unpack it"):
        open_tree(write_tar(tmp_path / "a.tar", {"a": bytes(600), "b": bytes(600)}, "w"))


def test_options(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with refused("'mnist'", "digits"):
        prepare(PrepOptions(dataset="mnist", out=out))
    with refused("--size"):
        prepare(PrepOptions(dataset="digits", out=out, size=0))
    with refused("--workers"):
        prepare(PrepOptions(dataset="digits", out=out, workers=-1))
    with refused("--source"):
        prepare(PrepOptions(dataset="digits", out=out, source=tmp_path))
    with refused("--source"):
        prepare(PrepOptions(dataset="folder", out=out))
    with refused("--test-fraction", "--dataset folder"):
        prepare(PrepOptions(dataset="digits", out=out, test_fraction=0.2))
    for fraction in (0.0, 1.0, -1.0, 20.0):
        with refused("--test-fraction", f"got {fraction:g}"):
            prepare(PrepOptions(dataset="folder", source=tmp_path, out=out, test_fraction=fraction))
    with refused("--test-seed", "--test-fraction"):
        prepare(PrepOptions(dataset="folder", source=tmp_path, out=out, test_seed=3))
    with refused("gone.zip", "does not exist"):
        prepare(PrepOptions(dataset="tiny", out=out, source=tmp_path / "gone.zip"))
    assert not out.exists()


def test_destination(tmp_path: Path, prepared: Path) -> None:
    with refused(str(prepared), "--force"):
        prepare(PrepOptions(dataset="digits", out=prepared))
    thesis = write_files(tmp_path / "work", {"thesis.tex": b"x"})
    with refused(str(thesis), "other files"):
        prepare(PrepOptions(dataset="digits", out=thesis, force=True))
    mixed = write_files(tmp_path / "mixed", {"thesis.tex": b"x", "train.beton": b"x"})
    with refused("thesis.tex"):
        prepare(PrepOptions(dataset="digits", out=mixed, force=True))
    with refused("is a file"):
        prepare(PrepOptions(dataset="digits", out=thesis / "thesis.tex", force=True))
    with refused("cannot write beside", "--out"):
        prepare(PrepOptions(dataset="digits", out=thesis / "thesis.tex" / "out"))
    assert (thesis / "thesis.tex").read_bytes() == (mixed / "thesis.tex").read_bytes() == b"x"


def test_bad_source_through_prepare_keeps_the_old_data_set(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photos", image_files(["a"], 1) | {"train/b/.keep": b""})
    out = write_files(tmp_path / "out", {"dataset.json": b'{"format": 1, "splits": {}}'})
    with refused("photos/train/b"):
        prepare(PrepOptions(dataset="folder", source=source, out=out, force=True))
    assert os.listdir(out) == ["dataset.json"]
