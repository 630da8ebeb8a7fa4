"""What a stranger may hand over, by kind: whole examples, and what fastpeer does with a changed one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from fastpeer.config import Config
from fastpeer.config.recipes import parse_recipe
from fastpeer.config.toml import dump_recipe
from fastpeer.data.dataset import open_dataset
from fastpeer.data.raw import RawLoader
from fastpeer.data.split import open_split
from fastpeer.data_prep.images import JpegForm, PixelForm, decode
from fastpeer.data_prep.sources import open_source
from fastpeer.errors import UserError
from fastpeer.files import file_sha256
from fastpeer.manifest import MANIFEST
from fastpeer.models import build_model
from fastpeer.models.weight_facts import recorded_facts
from fastpeer.models.weights import load_weights, save_weights
from fastpeer.own_code import trusting
from tests.data.beton_files import jpeg_file, raw_file
from tests.data_prep.prep_files import (
    cifar10_files,
    encode,
    image_files,
    pixels,
    tiny_files,
    write_tar,
    write_zip,
)
from tests.fuzz.commands import command
from tests.fuzz.run_kinds import (
    LAST,
    examples_of,
    make_run,
    use_known_checkpoint_file,
    use_looked_at,
    use_manifest,
    use_metrics,
    use_own_checkpoint_file,
    use_results,
    use_state,
    use_verdicts,
    verdict_examples,
)

CHECKED = ("state.pt", "student.safetensors", "settings.toml")
"""Files of a checkpoint whose checksums its manifest holds."""
LINES = (
    "train cifar10-resnet18 --data nowhere --out run --attack.steps 20 --optim.lr 0.05 --amp",
    "train --resume --out run --train.epochs 9 --model.student resnet8 --trust",
    "train tiny-resnet18 --method trades --loss.beta 6 --attack.epsilon 8/255 --optim.milestones 1 2",
    "eval run --attacks clean,fgsm,pgd20 --examples 100 --mean 0.5 --std 0.2 --data nowhere",
    "prep --dataset folder --source nowhere --size 32 --jpeg --quality 90 --test-fraction 0.2",
    "info run --weights-key ema",
    "runs nowhere",
    "recipes",
)


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        examples: whole ones, made once in a folder.
        use: does with the bytes of one, in a folder of its own, what fastpeer does with a file.
    """

    examples: Callable[[Path], list[bytes]]
    use: Callable[[bytes, Path], None]


def _recipes(folder: Path) -> list[bytes]:
    texts = [dump_recipe(Config()), dump_recipe(Config(method="trades")), 'like = "cifar10-resnet18-rslad"\n']
    return [text.encode() for text in texts]


def _use_recipe(data: bytes, folder: Path) -> None:
    parse_recipe(data.decode("utf-8", "replace"), "mine.toml")


def _write_data(folder: Path, train: bytes) -> dict[str, object]:
    (folder / "a.beton").write_bytes(train)
    facts = {"file": "a.beton", "count": 6, "bytes": len(train), "sha256": file_sha256(folder / "a.beton")}
    splits = {"train": facts, "test": facts}
    return {"format": 1, "name": "x", "classes": ["a", "b", "c"], "size": [8, 8], "splits": splits}


def _manifests(folder: Path) -> list[bytes]:
    content = _write_data(folder, raw_file().tobytes())
    return [json.dumps(content).encode(), json.dumps(content | {"encoding": "raw", "pixels": ""}).encode()]


def _use_manifest(data: bytes, folder: Path) -> None:
    _write_data(folder, raw_file().tobytes())
    (folder / "dataset.json").write_bytes(data)
    dataset = open_dataset(folder)
    loader = open_split(dataset.seen_at(0), "train", 4, reader="numpy")
    list(loader.batches(np.arange(len(loader.labels))))


def _betons(folder: Path) -> list[bytes]:
    return [raw_file().tobytes(), jpeg_file().tobytes(), jpeg_file(side=16).tobytes()]


def _use_beton(data: bytes, folder: Path) -> None:
    (folder / "a.beton").write_bytes(data)
    loader = RawLoader(folder / "a.beton", 4)
    list(loader.batches(np.arange(len(loader.labels))))


def _use_known_beton(data: bytes, folder: Path) -> None:
    """Read a changed file whose checksum is known; to succeed would be wrong."""
    whole = raw_file().tobytes()
    (folder / "dataset.json").write_text(json.dumps(_write_data(folder, whole)))
    (folder / "a.beton").write_bytes(data)
    open_split(open_dataset(folder), "train", 4)
    assert data == whole, "a changed file with a known checksum was read"


@cache
def _network() -> torch.nn.Module:
    return build_model("resnet8", 3, mean=(0.5,), std=(0.25,))


def _weights(folder: Path) -> list[bytes]:
    save_weights(_network(), folder / "w.safetensors")
    weights = build_model("resnet8", 3).state_dict()
    small = {name: tensor for name, tensor in weights.items() if tensor.numel() < 500}
    for name, content in (("w.pth", {"state_dict": weights, "epoch": 3}), ("old.pth", weights), ("s", small)):
        torch.save(content, folder / name, _use_new_zipfile_serialization=name != "old.pth")
    return [(folder / name).read_bytes() for name in ("w.safetensors", "w.pth", "old.pth", "s")]


def _use_weights(data: bytes, folder: Path) -> None:
    (folder / "w").write_bytes(data)
    recorded_facts(folder / "w")
    load_weights(_network(), folder / "w")


def _archives(folder: Path) -> list[bytes]:
    files = image_files(["a", "b"], 2)
    made = [write_zip(folder / "a.zip", files), write_zip(folder / "t.zip", tiny_files())]
    made += [
        write_tar(folder / f"a.{number}", files, form) for number, form in enumerate(("w", "w:gz", "w:xz"))
    ]
    made.append(write_tar(folder / "c.tar", cifar10_files(2), "w"))
    return [path.read_bytes() for path in made]


def _use_archive(data: bytes, folder: Path) -> None:
    (folder / "a").write_bytes(data)
    for name in ("folder", "tiny", "cifar10"):
        with contextlib.suppress(UserError):
            source, _ = open_source(name, folder / "a", 8)
            for split in (source.train, source.test):
                for index in range(min(4, len(split.labels))):
                    split[index]


def _images(folder: Path) -> list[bytes]:
    return [encode(pixels(0, 12, 9), kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]


def _use_image(data: bytes, folder: Path) -> None:
    PixelForm(8, 8, resize=True).fit(decode(data, "a"), "a")
    JpegForm(90, 100).stored(data, "a")


def _use_line(data: bytes, folder: Path) -> None:
    command(data.decode("utf-8", "surrogateescape").replace("\0", "").split(" "), folder)


def _use_trusted(use: Callable[[bytes, Path], None]) -> Callable[[bytes, Path], None]:
    """Let nothing be imported that the input names."""

    def used(data: bytes, folder: Path) -> None:
        with trusting(set()):
            use(data, folder)

    return used


def _run_kind(part: str, use: Callable[[bytes, Path], None]) -> Kind:
    return Kind(examples_of(part), _use_trusted(use))


KINDS = {
    "recipe": Kind(_recipes, _use_trusted(_use_recipe)),
    "manifest": Kind(_manifests, _use_manifest),
    "beton": Kind(_betons, _use_beton),
    "known beton": Kind(lambda folder: [raw_file().tobytes()], _use_known_beton),
    "weights": Kind(_weights, _use_weights),
    "archive": Kind(_archives, _use_archive),
    "image": Kind(_images, _use_image),
    "command line": Kind(lambda folder: [line.encode() for line in LINES], _use_line),
    "state of a run": Kind(lambda folder: [str(make_run(folder)).encode()], _use_trusted(use_state)),
    **{f"{LAST}/{name}": _run_kind(f"{LAST}/{name}", use_own_checkpoint_file(name)) for name in CHECKED},
    **{f"known {name}": _run_kind(f"{LAST}/{name}", use_known_checkpoint_file(name)) for name in CHECKED},
    f"{LAST}/{MANIFEST}": _run_kind(f"{LAST}/{MANIFEST}", use_manifest),
    "config.toml": _run_kind("config.toml", use_looked_at("config.toml")),
    "run.json": _run_kind("run.json", use_looked_at("run.json")),
    "metrics.jsonl": _run_kind("metrics.jsonl", use_metrics),
    "results.json": _run_kind("results.json", use_results),
    "verdicts": Kind(verdict_examples, use_verdicts),
}
