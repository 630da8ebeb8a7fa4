"""The formats of `fastpeer export`. A new one is an `ExportFormat` in `FORMATS`."""

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastpeer import __version__
from fastpeer.errors import UserError, brief
from fastpeer.evaluation.opening import OpenedNetwork
from fastpeer.export.claim import CLAIM, why_no_claim, write_claim
from fastpeer.export.source import load_plain, network_source, plain_state
from fastpeer.models import build_model
from fastpeer.models.weight_facts import recorded_facts
from fastpeer.models.weights import load_weights, recorded_normalization, save_weights

Forward = Callable[[Tensor], Tensor]
"""Maps images (B, 3, H, W) in [0, 1] to logits (B, classes)."""


@dataclass(frozen=True)
class ExportFormat:
    """A way to write a network, and to open what was written.

    Attributes:
        files: what it writes, with what each is for.
        write: writes them into a folder.
        reopen: opens what lies in a folder, as its user would.
        obstacle: returns why a network cannot be written so, empty if it can.
    """

    files: Mapping[str, str]
    write: Callable[[OpenedNetwork, Path], None]
    reopen: Callable[[OpenedNetwork, Path], Forward]
    obstacle: Callable[[OpenedNetwork], str] = lambda opened: ""


def _write_safetensors(opened: OpenedNetwork, folder: Path) -> None:
    facts = replace(
        recorded_facts(opened.target.weights),
        network=opened.name, classes=opened.classes, size=opened.size or (), version=__version__,
    )  # fmt: skip
    save_weights(opened.network, folder / "model.safetensors", facts)


def _reopen_safetensors(opened: OpenedNetwork, folder: Path) -> Forward:
    file = folder / "model.safetensors"
    facts = recorded_facts(file)
    mean, std = recorded_normalization(file, facts.network) or ((), ())
    network = build_model(facts.network, facts.classes, opened.size, mean=mean, std=std)
    load_weights(network, file)
    return network.eval()


def _write_pytorch(opened: OpenedNetwork, folder: Path) -> None:
    (folder / "network.py").write_text(network_source(opened), "utf-8")
    # Through memory: torch.save reports a full disk as a failed internal assertion, not as an OSError.
    buffer = BytesIO()
    torch.save(plain_state(opened), buffer)
    (folder / "model.pth").write_bytes(buffer.getvalue())


def _reopen_pytorch(opened: OpenedNetwork, folder: Path) -> Forward:
    return load_plain(folder)


def _write_program(opened: OpenedNetwork, folder: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(_in_planes(opened), (_example(opened),), dynamic_shapes=({0: batch},))
    buffer = BytesIO()
    torch.export.save(program, buffer)
    (folder / "model.pt2").write_bytes(buffer.getvalue())


def _reopen_program(opened: OpenedNetwork, folder: Path) -> Forward:
    return torch.export.load(folder / "model.pt2").module()


def _write_onnx(opened: OpenedNetwork, folder: Path) -> None:
    torch.onnx.export(
        _in_planes(opened), (_example(opened),), folder / "model.onnx", dynamo=True, verbose=False,
        input_names=["images"], output_names=["logits"], external_data=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip


def _reopen_onnx(opened: OpenedNetwork, folder: Path) -> Forward:
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

    def forward(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    return forward


def _without_onnx(opened: OpenedNetwork) -> str:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError:
            return f"{package} is not installed: pip install 'fastpeer[onnx]' installs it"
    return _without_size(opened)


def _without_size(opened: OpenedNetwork) -> str:
    return "" if opened.size else f"{opened.target.weights} does not record the size of images: pass --size"


def _write_robustbench(opened: OpenedNetwork, folder: Path) -> None:
    _write_pytorch(opened, folder)
    write_claim(opened, folder)


def _example(opened: OpenedNetwork) -> Tensor:
    """Return two images (2, 3, H, W): a program traced with a single one would take no more."""
    assert opened.size is not None
    return torch.zeros(2, 3, *opened.size)


def _in_planes(opened: OpenedNetwork) -> nn.Module:
    return opened.network.requires_grad_(False)


PLAIN = {
    "network.py": "the network as plain PyTorch; its `load` opens model.pth, without fastpeer",
    "model.pth": "weights for network.py, as tensors alone (`weights_only=True`)",
}
FORMATS: Mapping[str, ExportFormat] = {
    "safetensors": ExportFormat(
        {"model.safetensors": "weights and what they are of, for fastpeer and other readers of safetensors"},
        _write_safetensors,
        _reopen_safetensors,
    ),
    "pytorch": ExportFormat(PLAIN, _write_pytorch, _reopen_pytorch),
    "program": ExportFormat(
        {"model.pt2": "a program of `torch.export`: `torch.export.load(file).module()`"},
        _write_program,
        _reopen_program,
        _without_size,
    ),
    "onnx": ExportFormat(
        {"model.onnx": "for ONNX runtimes: input `images` (batch, 3, H, W), output `logits`"},
        _write_onnx,
        _reopen_onnx,
        _without_onnx,
    ),
    "robustbench": ExportFormat(
        PLAIN | {CLAIM: "what a submission to RobustBench states; empty entries are the authors' to fill in"},
        _write_robustbench,
        _reopen_pytorch,
        why_no_claim,
    ),
}


def parse_formats(text: str, opened: OpenedNetwork) -> tuple[list[str], dict[str, str]]:
    """Return the formats that a text names, and of "all" those that cannot be written, with the reason.

    Raises:
        UserError: an unknown name, or a named format cannot be written.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in (*FORMATS, "all"):
            raise UserError(f"unknown format {name}: --formats must be all or some of {', '.join(FORMATS)}")
    if not names:
        raise UserError(f"--formats must be all or some of {', '.join(FORMATS)}, got none")
    # What a format needs is imported to see whether it can be, which takes a second for ONNX.
    reasons = {name: FORMATS[name].obstacle(opened) for name in FORMATS if {name, "all"} & set(names)}
    for name in names:
        if reasons.get(name):
            raise UserError(f"--formats {name}: {reasons[name]}")
    chosen = [name for name in FORMATS if name in names or ("all" in names and not reasons[name])]
    return chosen, {name: reasons[name] for name in FORMATS if "all" in names and reasons[name]}


def write_format(name: str, opened: OpenedNetwork, folder: Path) -> Forward:
    """Write a network in one format, and return what opens from the files.

    Raises:
        UserError: the network cannot be written so.
        OSError: a file cannot be written.
    """
    form = FORMATS[name]
    try:
        with _quiet():
            form.write(opened, folder)
            return form.reopen(opened, folder)
    except (UserError, OSError):
        raise
    except Exception as error:  # Compilers and anybody's networks may raise anything.
        raise UserError(
            f"{opened.name} cannot be exported as {name} ({type(error).__name__}: {brief(error)}): name the"
            " others with --formats, such as safetensors,pytorch"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what PyTorch prints, logs and warns of while it traces."""
    loggers = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels: list[tuple[Any, int]] = [(logger, logger.level) for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
