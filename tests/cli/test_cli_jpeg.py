"""Data sets kept as JPEG, from the image folder to the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from fastpeer.config.recipes import load_recipe

TRAIN = "train tiny.toml --data data/jpeg --data.size 64 --train.epochs 1 --selection.examples 4"


@pytest.fixture(scope="module", autouse=True)
def jpegs(workshop: Path) -> Path:
    """Write 20 training and 4 test JPEGs of two classes and of many sizes."""
    random = np.random.default_rng(0)
    root = workshop / "sources" / "jpeg"
    for split, count in (("train", 10), ("val", 2)):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for image in range(count):
                width, height = random.integers(40, 160, 2).tolist()
                colour = tuple(random.integers(0, 255, 3).tolist())
                Image.new("RGB", (width, height), colour).save(root / split / name / f"{image}.jpg")
    return root


@pytest.fixture(scope="module")
def prepared(workshop: Path, jpegs: Path) -> Path:
    from fastpeer.cli.main import main

    out = workshop / "data" / "jpeg"
    words = ["--dataset", "folder", "--source", str(jpegs), "--out", str(out), "--jpeg", "--quiet"]
    assert main(["prep", *words, "--max-side", "120", "--quality", "80", "--workers", "1"]) == 0
    return out


def weights(run: Path) -> bytes:
    return (run / "checkpoints" / "last" / "student.safetensors").read_bytes()


def test_prep_says_what_it_wrote(fastpeer, jpegs: Path, tmp_path: Path) -> None:
    line = f"prep --dataset folder --source {jpegs} --jpeg --workers 1"
    done = fastpeer(line, "--out", tmp_path / "out").succeeded()
    assert "20 train, 4 test images of many sizes, as JPEG, in 2 classes" in done.out


def test_training_goes_on_with_the_same_pixels_and_eval_reads_at_the_runs_size(
    fastpeer, prepared: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert "folder (2 classes, 64x64)" in fastpeer(TRAIN, "--out", whole).succeeded().out
    fastpeer(f"{TRAIN} --train.max-steps 1 --quiet", "--out", parts).succeeded()
    fastpeer("train --resume --train.max-steps 0 --quiet --out", parts).succeeded()
    assert weights(parts) == weights(whole)
    assert load_recipe(str(whole / "config.toml")).data.crop_scale == (0.08, 1.0)
    assert "last" in fastpeer("eval --attacks clean --checkpoints last", whole).succeeded().out
    alone = tmp_path / "alone.safetensors"
    # Without the file's metadata, which has the size too.
    save_file(load_file(whole / "checkpoints" / "last" / "student.safetensors"), alone)
    line = "eval --attacks clean --model resnet8 --data data/jpeg"
    fastpeer(line, alone).refused("JPEGs of many sizes", "--size 224")
    assert "alone" in fastpeer(f"{line} --size 64", alone).succeeded().out


@pytest.mark.soak
def test_without_augmentation_and_with_the_device_asked_for(fastpeer, prepared: Path, tmp_path: Path) -> None:
    line = f"{TRAIN} --data.augment false --data.residency device --train.max-steps 1"
    assert "stay on the host" in " ".join(fastpeer(line, "--out", tmp_path / "run").succeeded().out.split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train tiny.toml --data data/jpeg", ["JPEGs of many sizes", "--data.size 224"]),
        ("train tiny.toml --data data/photos --data.size 64", ["8x8", "64x64", "--data.size"]),
        (f"{TRAIN} --data.size 9999", ["size", "4096"]),
        (f"{TRAIN} --data.crop-scale 0.5 0.1", ["crop-scale", "0.5, 0.1"]),
        (f"{TRAIN} --data.crop-scale 0.5", ["--data.crop-scale", "2"]),
        ("prep --dataset digits --jpeg", ["--jpeg", "folder"]),
        ("prep --dataset folder --source sources/jpeg --max-side 9", ["--max-side", "--jpeg"]),
        ("prep --dataset folder --source sources/jpeg --jpeg --size 9", ["--size", "--jpeg"]),
        ("eval --size -1", ["--size", "0 or more"]),
    ],
)
def test_wrong_words_are_refused(
    fastpeer, prepared: Path, tmp_path: Path, line: str, words: list[str]
) -> None:
    out = ["--out", tmp_path / "out"] if not line.startswith("eval") else []
    fastpeer(line, *out).refused(*words)
    assert not (tmp_path / "out").exists()


def test_a_resumed_run_keeps_its_size(fastpeer, prepared: Path, tmp_path: Path) -> None:
    fastpeer(f"{TRAIN} --train.max-steps 1 --quiet", "--out", tmp_path / "run").succeeded()
    fastpeer("train --resume --data.size 32 --out", tmp_path / "run").refused("data.size", "64", "32")
