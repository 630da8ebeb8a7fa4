"""Small data sets in the official layouts, made on the fly."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
WNIDS = ["n03", "n01", "n02"]


def pixels(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def image_files(
    classes: Iterable[str], per_class: int = 3, test: str = "test", kind: str = "PNG", height: int = 8
) -> dict[str, bytes]:
    files, seed = {}, 0
    for split, count in (("train", per_class), (test, 1)):
        for name in classes:
            for number in range(count):
                files[f"{split}/{name}/{number}.{kind.lower()}"] = encode(pixels(seed, height), kind)
                seed += 1
    return files


def tiny_files(per_class: int = 2) -> dict[str, bytes]:
    """Class list in no sorted order; the first training image of n01 and one of val are grey."""
    files = {
        "wnids.txt": "\n".join(WNIDS).encode(),
        "words.txt": b"n01\tcat, puss\nn02\tdog\nn03\tfox\nn04\tant\n",
    }
    for label, name in enumerate(WNIDS):
        for number in range(per_class):
            image = pixels(10 * label + number, 16, 16)
            grey = name == "n01" and number == 0
            files[f"train/{name}/images/{name}_{number}.JPEG"] = encode(
                image[..., 0] if grey else image, "JPEG"
            )
        files[f"train/{name}/{name}_boxes.txt"] = b"boxes"
    order = [(10, "n02"), (9, "n03"), (2, "n01")]
    files["val/val_annotations.txt"] = "".join(f"val_{i}.JPEG\t{n}\t0\t0\t1\t1\n" for i, n in order).encode()
    for number, _ in order:
        image = pixels(100 + number, 16, 16)
        files[f"val/images/val_{number}.JPEG"] = encode(image[..., 1] if number == 9 else image, "JPEG")
    return {f"tiny-imagenet-200/{name}": data for name, data in files.items()}


def cifar10_files(count: int = 4, label: int | None = None, protocol: int = 2) -> dict[str, bytes]:
    """Five batches and a test batch of `count` images; `label` replaces one in data_batch_3."""
    files = {"batches.meta": pickle.dumps({b"label_names": [name.encode() for name in CIFAR10]}, protocol)}
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        labels = [(seed + index) % 10 for index in range(count)]
        if label is not None and name == "data_batch_3":
            labels[1] = label
        files[name] = pickle.dumps({b"data": cifar_rows(seed, count), b"labels": labels}, protocol)
    return {f"cifar-10-batches-py/{name}": data for name, data in files.items()}


def cifar100_files() -> dict[str, bytes]:
    names = [f"class{index:02}".encode() for index in range(100)]
    files = {"meta": pickle.dumps({b"fine_label_names": names}, 2)}
    for seed, name in enumerate(("train", "test")):
        content = {b"data": cifar_rows(seed, 3), b"fine_labels": [99, 0, 7], b"coarse_labels": [1, 1, 1]}
        files[name] = pickle.dumps(content, 2)
    return {f"cifar-100-python/{name}": data for name, data in files.items()}


def cifar_rows(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def cifar_image(seed: int, index: int, count: int = 4) -> np.ndarray:
    return cifar_rows(seed, count)[index].reshape(3, 32, 32).transpose(1, 2, 0)


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_any(path: Path, files: dict[str, bytes]) -> Path:
    """Write a zip, a tar (of any compression) or a folder, as the name says."""
    if path.suffix == ".zip":
        return write_zip(path, files)
    if ".tar" in path.name:
        return write_tar(path, files, {".gz": "w:gz", ".xz": "w:xz"}.get(path.suffix, "w"))
    return write_files(path, files)
