"""Reading each kind of source: classes, order and labels, without writing anything."""

from __future__ import annotations

import hashlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from prep_files import (
    CIFAR10,
    WNIDS,
    cifar10_files,
    cifar100_files,
    cifar_image,
    encode,
    image_files,
    pixels,
    tiny_files,
    write_any,
    write_files,
    write_tar,
)

from fastpeer.config import differences
from fastpeer.data_prep.archive import open_tree
from fastpeer.data_prep.images import resize_and_crop
from fastpeer.data_prep.sources import official, open_source
from fastpeer.data_prep.sources.cifar import CIFAR100_NAMES
from fastpeer.data_prep.sources.official import OfficialSet, pixels_of
from fastpeer.data_prep.sources.source import DrawnPart, Source, Split

FORMS = ["data", "data.zip", "data.tar", "data.tar.gz", "data.tar.xz"]


def read(dataset: str, path: Path | None, size: int | None = None) -> Source:
    return open_source(dataset, path, size)[0]


def names(split: Split) -> list[str]:
    return [split.name_of(index).split("/", 1)[1] for index in range(len(split.labels))]


def sizes(split: Split) -> set[tuple[int, ...]]:
    return {split[index][0].shape for index in range(len(split.labels))}


@pytest.mark.parametrize("form", FORMS)
def test_cifar10_in_every_form(tmp_path: Path, form: str) -> None:
    source = read("cifar10", write_any(tmp_path / form, cifar10_files()))
    assert source.classes == CIFAR10
    assert len(source.train.labels) == 20
    for index in range(20):
        image, label = source.train[index]
        assert label == (index // 4 + index % 4) % 10
        assert np.array_equal(image, cifar_image(index // 4, index % 4))
    assert np.array_equal(source.test[3][0], cifar_image(5, 3))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cifar_pickles_of_every_age(tmp_path: Path, protocol: int) -> None:
    files = cifar10_files(protocol=protocol)
    folder = write_files(tmp_path, files) / "cifar-10-batches-py"
    assert np.array_equal(read("cifar10", folder).train[0][0], cifar_image(0, 0))


def test_cifar_resized(tmp_path: Path) -> None:
    source = read("cifar10", write_files(tmp_path, cifar10_files()), size=48)
    assert (source.form.height, source.form.width) == (48, 48)
    assert sizes(source.test) == {(48, 48, 3)}


def test_cifar100_takes_fine_labels(tmp_path: Path) -> None:
    source = read("cifar100", write_tar(tmp_path / "anything", cifar100_files()))
    assert source.classes[:2] == ["class00", "class01"]
    assert source.train.labels == [99, 0, 7]
    assert np.array_equal(source.test[1][0], cifar_image(1, 1, 3))


def test_cifar_as_image_folder_has_official_order(tmp_path: Path) -> None:
    assert read("cifar10", write_files(tmp_path / "a", image_files(CIFAR10))).classes == CIFAR10
    hundred = CIFAR100_NAMES.split()
    assert len(set(hundred)) == 100
    # One of the classes is called train.
    source = read("cifar100", write_files(tmp_path / "b", image_files(hundred, 1)))
    assert source.classes == hundred
    assert source.train.labels == list(range(100))


@pytest.mark.parametrize("form", FORMS)
def test_tiny_in_every_form(tmp_path: Path, form: str) -> None:
    source = read("tiny", write_any(tmp_path / form, tiny_files()))
    assert source.classes == WNIDS
    assert source.class_names == ["fox", "cat, puss", "dog"]
    train = [f"tiny-imagenet-200/train/{name}/images/{name}_{i}.JPEG" for name in WNIDS for i in range(2)]
    assert names(source.train) == train
    assert source.train.labels == [0, 0, 1, 1, 2, 2]
    assert [name[-11:] for name in names(source.test)] == ["val_10.JPEG", "/val_9.JPEG", "/val_2.JPEG"]
    assert source.test.labels == [2, 0, 1]
    assert sizes(source.train) == sizes(source.test) == {(16, 16, 3)}
    grey = source.train[2][0]
    assert np.array_equal(grey[..., 0], grey[..., 1])


def test_tiny_accepts_a_subset_and_val_in_class_folders(tmp_path: Path) -> None:
    files = tiny_files()
    del files["tiny-imagenet-200/val/images/val_9.JPEG"]
    source = read("tiny", write_files(tmp_path / "a", files) / "tiny-imagenet-200")
    assert source.test.labels == [2, 1]
    files = {name: data for name, data in files.items() if "/val/" not in name}
    files |= {f"tiny-imagenet-200/val/{name}/images/x.JPEG": encode(pixels(0, 16, 16)) for name in WNIDS[:2]}
    assert read("tiny", write_files(tmp_path / "b", files)).test.labels == [0, 1]


HALF_SORTED = {
    "moved": ["val/n02/val_10.JPEG", "val/images/val_9.JPEG", "val/n01/images/val_2.JPEG"],
    "copied": ["val/n02/val_10.JPEG", "val/images/val_10.JPEG", "val/val_9.JPEG", "val/n01/val_2.JPEG"],
    "all moved": ["val/n02/val_10.JPEG", "val/n03/val_9.JPEG", "val/n01/val_2.JPEG"],
}


@pytest.mark.parametrize("case", HALF_SORTED)
def test_tiny_with_a_val_that_is_half_sorted_into_classes(tmp_path: Path, case: str) -> None:
    files = {name: data for name, data in tiny_files().items() if "/val/images/" not in name}
    for name in HALF_SORTED[case]:
        number = int(name.split("_")[1].split(".")[0])
        files[f"tiny-imagenet-200/{name}"] = encode(pixels(number, 16, 16), "JPEG")
    root = write_files(tmp_path / "t", files)
    (root / "tiny-imagenet-200/val/images").mkdir(exist_ok=True)
    test = read("tiny", root).test
    assert [name.split("_")[-1] for name in names(test)] == ["10.JPEG", "9.JPEG", "2.JPEG"]
    assert test.labels == [2, 0, 1]


def test_tiny_images_without_annotation_come_last(tmp_path: Path) -> None:
    files = tiny_files() | {"tiny-imagenet-200/val/n03/extra.JPEG": encode(pixels(0, 16, 16), "JPEG")}
    test = read("tiny", write_files(tmp_path, files)).test
    assert test.labels == [2, 0, 1, 0]
    assert names(test)[-1].endswith("val/n03/extra.JPEG")


def test_tiny_written_on_windows(tmp_path: Path) -> None:
    files = {
        name: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") if name.endswith(".txt") else data
        for name, data in tiny_files().items()
    }
    source = read("tiny", write_files(tmp_path, files))
    assert source.classes == WNIDS
    assert source.class_names == ["fox", "cat, puss", "dog"]
    assert source.test.labels == [2, 0, 1]


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAIN", "VAL"), ("train", "Val")])
def test_splits_in_any_letter_case(tmp_path: Path, train: str, test: str) -> None:
    renamed = {
        name.replace("train/", f"{train}/").replace("test/", f"{test}/"): data
        for name, data in image_files(CIFAR10, 2).items()
    }
    for dataset in ("folder", "cifar10"):
        source = read(dataset, write_files(tmp_path / dataset, renamed))
        assert (len(source.train.labels), len(source.test.labels)) == (20, 10)
    official = {
        name.replace("/train/", f"/{train}/").replace("/val/", "/VAL/"): data
        for name, data in tiny_files().items()
    }
    assert read("tiny", write_files(tmp_path / "tiny", official)).test.labels == [2, 0, 1]


def test_tiny_as_image_folder(tmp_path: Path) -> None:
    assert read("tiny", write_files(tmp_path, image_files(WNIDS))).classes == sorted(WNIDS)


@pytest.mark.parametrize("form", FORMS)
def test_folder_in_every_form_below_a_parent(tmp_path: Path, form: str) -> None:
    files = image_files(["b", "a"], 2, "val") | {"__MACOSX/train/._x": b"x", "train/Thumbs.db": b"x"}
    source = read(
        "folder", write_any(tmp_path / form, {f"./photos/{name}": data for name, data in files.items()})
    )
    assert source.classes == ["a", "b"]
    assert names(source.train)[0] == "photos/train/a/0.png"
    assert np.array_equal(source.train[0][0], pixels(2))
    assert source.train.labels == [0, 0, 1, 1]
    assert names(source.test) == ["photos/val/a/0.png", "photos/val/b/0.png"]


def test_folder_modes_become_rgb(tmp_path: Path) -> None:
    colour = Image.fromarray(pixels(1))
    source = write_files(tmp_path / "s", image_files(["a"], 1))
    expected = {}
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK"):
        image = colour.convert(mode)
        kind = "tiff" if mode == "CMYK" else "png"
        image.save(source / "train" / "a" / f"{mode}.{kind}")
        expected[f"{mode}.{kind}"] = np.asarray(image.convert("RGB"))
    (source / "train/a/0.png").unlink()
    train = read("folder", source).train
    for index, name in enumerate(names(train)):
        assert np.array_equal(train[index][0], expected[name.split("/")[-1]])


@pytest.mark.parametrize(
    ("folders", "test", "words"),
    [
        (("test",), "test", []),
        (("val",), "val", ["no test/<class>/ images: val/ is taken as the test split"]),
        (("Valid",), "Valid", ["no test/<class>/ images: Valid/ is taken as the test split"]),
        (("test", "VAL"), "test", ["left out: VAL/ (", "test images are those of test/"]),
        (("val", "unlabelled"), "val", ["val/ is taken as the test split", "left out: unlabelled/"]),
    ],
)
def test_splits_that_are_left_out_or_taken_for_another_are_told(
    tmp_path: Path, folders: tuple[str, ...], test: str, words: list[str]
) -> None:
    files = {}
    for folder in folders:
        files |= image_files(["a", "b"], 1, folder)
    source = read("folder", write_files(tmp_path / "s", files))
    assert names(source.test) == [f"{test}/a/0.png", f"{test}/b/0.png"]
    assert all(word in " ".join(source.notes) for word in words)
    assert bool(source.notes) == bool(words)


def test_classes_without_test_images_and_dropped_alpha_are_told(tmp_path: Path) -> None:
    files = image_files("abcdefghi", 1)
    kept = {name: data for name, data in files.items() if name in ("test/a/0.png",) or "train" in name}
    root = write_files(tmp_path / "s", kept)
    clear, opaque = (Image.new("RGBA", (8, 8), (9, 9, 9, alpha)) for alpha in (254, 255))
    clear.save(root / "train/b/0.png")
    opaque.save(root / "train/c/0.png")
    clear.convert("LA").save(root / "train/d/0.png")
    Image.new("P", (8, 8)).save(root / "train/e/0.png", transparency=0)
    source = read("folder", root)
    sizes(source.train)
    assert source.written_notes() == [
        "classes without test images: b, c, d, e, f and 3 more",
        "transparent images, whose colours are kept and whose alpha is dropped: 3",
    ]


@pytest.mark.parametrize("layout", ["train/", "", "photos/", "deep/photos/"])
def test_test_images_are_drawn_from_each_class(tmp_path: Path, layout: str) -> None:
    counts = {"ant": 10, "bee": 4, "cat": 2, "dog": 1}
    files = {
        f"{layout}{name}/{number}.png": encode(pixels(number))
        for name, count in counts.items()
        for number in range(count)
    }
    path = write_files(tmp_path / "s", files)
    source, again, other = (open_source("folder", path, None, DrawnPart(0.3, seed))[0] for seed in (0, 0, 1))
    assert source.classes == list(counts)
    assert [source.test.labels.count(label) for label in range(4)] == [3, 1, 1, 0]
    assert sorted(names(source.train) + names(source.test)) == sorted(files)
    assert names(source.test) == names(again.test) == sorted(names(source.test))
    assert names(source.test) != names(other.test)
    chosen = [name.removeprefix(layout) for name in names(source.test)]
    assert chosen[:3] == ["ant/3.png", "ant/6.png", "ant/7.png"]  # with any version of any library
    assert source.draw == DrawnPart(0.3, 0)


def test_official_cifar_files_are_known_by_their_checksums(tmp_path: Path) -> None:
    files = cifar10_files(count=10)
    md5 = {name.split("/")[1]: hashlib.md5(data).hexdigest() for name, data in files.items() if "_b" in name}
    sets = {"cifar10": OfficialSet(10, 32, 5, 10, md5)}

    def pixels_in(source_files: dict[str, bytes], form: str, size: int | None = None) -> str:
        path = write_any(tmp_path / form, source_files)
        return pixels_of("cifar10", open_tree(path), read("cifar10", path, size), sets)

    assert pixels_in(files, "data") == pixels_in(files, "data.tar.gz") == "official pixels"
    changed = files | {"cifar-10-batches-py/data_batch_2": files["cifar-10-batches-py/data_batch_3"]}
    assert "not known to be the official pixels: data_batch_2 differs" in pixels_in(changed, "changed")
    rewritten = cifar10_files(count=10, protocol=3)
    assert pixels_in(rewritten, "again").startswith(
        "not known to be the official pixels: data_batch_1 differs"
    )
    assert pixels_in(files, "larger", 40) == "not the official pixels: images of 40x40, official are 32x32"


def test_evaluation_and_preparation_use_the_same_words() -> None:
    for name in ("OFFICIAL_PIXELS", "UNKNOWN_PIXELS"):
        assert getattr(differences, name) == getattr(official, name)


def test_other_data_under_an_official_name_are_told(tmp_path: Path) -> None:
    copies = write_files(tmp_path / "c", image_files(CIFAR10, kind="JPEG", height=32))
    ten = OfficialSet(10, 32, 3, 10, {"data_batch_1": "0"})
    source = read("cifar10", copies, 32)
    assert pixels_of("cifar10", open_tree(copies), source, {"cifar10": ten}).startswith(
        "not the official pixels: JPEG files"
    )
    assert source.pixels == "not the official pixels: a class has 3 training images, official are 5000"
    assert read("tiny", copies).pixels == "not the official pixels: 10 classes, official are 200"
    assert read("folder", copies).pixels == ""


def test_an_extracted_tiny_is_not_known_to_be_official(tmp_path: Path) -> None:
    path = write_files(tmp_path / "t", tiny_files())
    sets = {"tiny": OfficialSet(3, 16, 2, 3, class_pattern=r"n\d\d")}
    assert pixels_of("tiny", open_tree(path), read("tiny", path), sets).startswith("not known")


def test_folder_ignores_exif_rotation(tmp_path: Path) -> None:
    source = write_files(tmp_path / "s", image_files(["a"], 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(5)).save(source / "train/a/0.png", exif=exif)
    assert np.array_equal(read("folder", source).train[0][0], pixels(5))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    real = write_files(tmp_path / "real", image_files(["a"], 1))
    linked = tmp_path / "linked"
    linked.mkdir()
    for split in ("train", "test"):
        (linked / split).symlink_to(real / split)
    (real / "loop").symlink_to(real)
    (linked / "loop").symlink_to(linked)
    assert len(read("folder", linked).train.labels) == 1


def test_digits_split_is_stratified_and_ordered() -> None:
    from sklearn.datasets import load_digits

    source, origin = open_source("digits", None, None)
    target = load_digits().target
    assert (origin.kind, origin.sha256) == ("bundled", None)
    assert source.classes == list("0123456789")
    assert len(source.train.labels) + len(source.test.labels) == 1797
    for digit in range(10):
        count = int((target == digit).sum())
        assert list(source.test.labels).count(digit) == count // 5
    assert list(source.train.labels[:10]) == target[:10].tolist()
    image, _ = source.train[0]
    assert image.shape == (32, 32, 3)
    assert np.array_equal(image[..., 0], image[..., 2])
    assert image.max() > 200
    assert read("digits", None, 8).train[0][0].max() == 239  # 15 of 16


def test_zip_survives_a_fork(tmp_path: Path) -> None:
    import multiprocessing

    train = read("folder", write_any(tmp_path / "a.zip", image_files(["a"], 40))).train
    order = sorted(range(40), key=lambda number: f"{number}.png")

    def check(start: int) -> None:
        good = all(
            np.array_equal(train[i][0], pixels(order[i])) for i in range(start, 40, 2) for _ in range(5)
        )
        sys.exit(0 if good else 1)

    workers = [multiprocessing.get_context("fork").Process(target=check, args=(start,)) for start in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 40))
def test_resize_and_crop_gives_a_square(width: int, height: int, side: int) -> None:
    assert resize_and_crop(Image.new("RGB", (width, height)), side).size == (side, side)


def test_crop_takes_the_centre() -> None:
    image = np.zeros((4, 12, 3), np.uint8)
    image[:, 4:8] = 255
    assert np.asarray(resize_and_crop(Image.fromarray(image), 4)).min() == 255
