"""fastpeer from Python: `load` opens a finished network, `evaluate` attacks anybody's."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral
from os import PathLike
from pathlib import Path
from time import perf_counter
from typing import SupportsFloat

import numpy as np
import torch
from torch import Tensor, nn

from fastpeer.config import Norm, check_distances, check_fits, check_normalization, doubts
from fastpeer.data.dataset import open_dataset
from fastpeer.data.host import HostSource
from fastpeer.data.split import open_split
from fastpeer.data.stream import EvaluationStream, Source, spread
from fastpeer.data.tensors import RowMajorSource, TensorSource
from fastpeer.device import choose_device, placed
from fastpeer.errors import UserError, brief, shown
from fastpeer.evaluation.accuracy import Classified, classify_under_attack, evaluation_options
from fastpeer.evaluation.attack_names import fewest_steps, parse_attacks
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.hidden_gradients import hidden_gradients
from fastpeer.evaluation.opening import Wanted, open_network
from fastpeer.evaluation.results import wilson_interval
from fastpeer.models.pixel_range import check_pixel_range
from fastpeer.own_code import trusting
from fastpeer.step.precision import number_format


@dataclass(frozen=True)
class AttackResult:
    """How many images a model classifies correctly under one attack.

    Attributes:
        attack: its name, such as pgd20.
        correct, images: number of images classified correctly, and of all that were attacked.
        total: number of images that there are.
        non_finite: number of images with logits that are NaN or infinite, none of which counts as correct.
        epsilon, step_size, norm, seed: settings of the attack, for images in [0, 1].
        seconds: duration.
        stands: for each attacked image in order, whether it was classified correctly.
        broken: how many images each of AutoAttack's attacks broke, and were wrong without one ("clean").
        warnings: why the robustness may be less than it seems.
    """

    attack: str
    correct: int
    images: int
    total: int
    non_finite: int
    epsilon: float
    step_size: float
    norm: str
    seed: int
    seconds: float
    stands: tuple[bool, ...] = field(repr=False)
    broken: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of the attacked images that were classified correctly, in %."""
        return 100 * self.correct / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy, in %."""
        return wilson_interval(self.correct, self.images)


def load(
    path: str | Path,
    checkpoint: str = "best",
    *,
    device: str | torch.device = "cpu",
    model: str = "",
    classes: int = 0,
    size: int = 0,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    weights_key: str = "",
    trust: bool = False,
) -> nn.Module:
    """Open a finished network, in eval mode and float32, with its normalisation inside.

    Args:
        path: a run's folder, a checkpoint's folder or a file with weights.
        checkpoint: last, swa, best or best-swa, of a run.
        device: auto, cpu, cuda or cuda:N.
        model: name of the network, where a file does not tell: a shipped one, timm:NAME or module:Class.
        classes: number of classes, where a file does not tell.
        size: side of the images, for networks that are built for one, where a file does not tell.
        mean: normalisation inside the network for pixels in [0, 1], one number or three; empty: as its run or
            file records.
        std: divides each channel after that; as many numbers.
        weights_key: which weights of a file that holds several sets of them.
        trust: import a class of your own that a run names; otherwise only `model`. It runs code.

    Returns:
        A module that maps images (B, 3, H, W) in [0, 1] to logits (B, classes).

    Raises:
        fastpeer.UserError: there is no such network, or it cannot be built; a line that says what to do.
    """
    _check_kind(str, "text", checkpoint=checkpoint, model=model, weights_key=weights_key)
    _check_kind((str, PathLike), "a path", path=path)
    _check_whole(0, classes=classes, size=size)
    wanted = Wanted(
        checkpoint=checkpoint, model=model, classes=classes, size=size, weights_key=weights_key,
        mean=_numbers("mean", mean), std=_numbers("std", std),
    )  # fmt: skip
    with _one_line_errors():
        check_normalization(wanted.mean, wanted.std)
        check_pixel_range(wanted.mean, wanted.std)
    chosen = choose_device(str(device), "device")
    with trusting(None if trust else {model}):
        try:
            opened = open_network(Path(path), wanted, flag="")
        except UserError as error:
            told = str(error).replace("--trust", "trust=True").replace("--weights-key", "weights_key")
            raise type(error)(told) from None
    return placed(opened.network, chosen, torch.float32).eval()


def evaluate(
    model: nn.Module,
    data: str | Path | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    attacks: str | Sequence[str] = "clean,fgsm,pgd20",
    *,
    norm: Norm = "linf",
    epsilon: float = 8 / 255,
    step_size: float = 2 / 255,
    examples: int = 0,
    size: int = 0,
    batch_size: int = 256,
    seed: int = 0,
) -> dict[str, AttackResult]:
    """Attack a model as `fastpeer eval` does; it stays as it was.

    Args:
        model: maps images (B, 3, H, W) in [0, 1] to logits (B, classes), in float32; on any device.
        data: the folder of a prepared data set, whose test images are used; images (N, 3, H, W) in [0, 1] and
            labels int64 (N,); or batches of such pairs, as a `DataLoader` yields them, which are all kept in
            memory.
        attacks: names as behind `fastpeer eval --attacks`, in one text or one by one.
        norm: of the ball: linf or l2.
        epsilon: radius of the ball.
        step_size: of PGD; AutoAttack chooses its own.
        examples: use only this many images, evenly spread; 0: all.
        size: side of the images, of a prepared data set kept as JPEG.
        batch_size: images attacked at once.
        seed: of the random starts.

    Returns:
        A result for each attack, by name.

    Raises:
        fastpeer.UserError: model or data do not fit; a line that says what must be.
    """
    names = _names(attacks)
    _check_whole(1, batch_size=batch_size)
    _check_whole(0, examples=examples, size=size, seed=seed)
    _check_distances(norm, epsilon, step_size)
    device = _device_of(model)
    source = _source(data, device, batch_size, size, _is_channels_last(model))
    chosen = spread(np.arange(len(source.labels)), examples)
    stream = EvaluationStream(source, chosen, torch.float32)
    number_format("fp32").allow_tf32()
    _check_fits(norm, epsilon, stream)
    with _as_it_was(model):
        settings = AttackSettings(
            epsilon=float(epsilon), step_size=float(step_size), classes=_classes(model, stream), seed=seed,
            batch_size=batch_size, options=evaluation_options(device), norm=norm,
        )  # fmt: skip
        hidden = hidden_gradients(model, stream) if names != ["clean"] else []
        suspect = [*doubts(norm, settings.epsilon, settings.step_size, fewest_steps(names)), *hidden]
        return {name: _attacked(name, model, stream, settings, suspect) for name in names}


def _attacked(
    name: str, model: nn.Module, stream: EvaluationStream, settings: AttackSettings, suspect: Sequence[str]
) -> AttackResult:
    began = perf_counter()
    found: Classified = classify_under_attack(name, model, stream, settings, lambda done, stage="": None)
    warnings = () if name == "clean" else tuple(dict.fromkeys([*suspect, *found.reasons]))
    stands = tuple(found.correct.tolist())
    return AttackResult(
        attack=name, correct=sum(stands), images=len(stands), total=len(stream.source.labels),
        non_finite=int((~found.finite).sum()), epsilon=settings.epsilon, step_size=settings.step_size,
        norm=settings.norm, seed=settings.seed, seconds=perf_counter() - began, stands=stands,
        broken=dict(found.broken), warnings=warnings,
    )  # fmt: skip


def _names(attacks: str | Sequence[str]) -> list[str]:
    single = isinstance(attacks, str)
    if not single and not (isinstance(attacks, Iterable) and all(isinstance(name, str) for name in attacks)):
        raise UserError(f"attacks must be names, such as clean,fgsm,pgd20, got {shown(attacks)}")
    return parse_attacks(attacks if isinstance(attacks, str) else ",".join(attacks), "attacks")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_kind(kind: type | tuple[type, ...], what: str, **values: object) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, kind):
            raise UserError(f"{name} must be {what}, got {shown(value)}")


def _check_whole(low: int, **values: int) -> None:
    _check_kind(Integral, "a whole number", **values)
    for name, value in values.items():
        if value < low:
            raise UserError(f"{name} must be {low} or more, got {value}")


def _numbers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError):
        raise UserError(f"{name} must hold 1 or 3 numbers, such as [0.5], got {shown(values)}") from None


def _check_distances(norm: Norm, epsilon: float, step_size: float) -> None:
    if norm not in ("linf", "l2"):
        raise UserError(f"norm must be linf or l2, got {norm!r}")
    # Whatever has a number may stand for it, such as a tensor's element or NumPy's.
    _check_kind(SupportsFloat, "a number, such as 8 / 255", epsilon=epsilon, step_size=step_size)
    with _one_line_errors():
        check_distances(norm, epsilon=float(epsilon), step_size=float(step_size))


def _check_fits(norm: Norm, epsilon: float, stream: EvaluationStream) -> None:
    height, width = next(iter(stream.sample(1))).images.shape[2:]
    check_fits(norm, epsilon, (height, width), "epsilon")


def _device_of(model: nn.Module) -> torch.device:
    if not isinstance(model, nn.Module):
        raise UserError(
            f"the model must be a torch.nn.Module, got {type(model).__name__}: fastpeer.load(path) opens one"
        )
    parameters = list(model.parameters())
    if not parameters:
        raise UserError("the model must have parameters, which tell its device: wrap it together with them")
    dtypes = {parameter.dtype for parameter in parameters if parameter.is_floating_point()}
    if dtypes != {torch.float32}:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UserError(f"the model's weights must be float32, got {found}: pass model.float()")
    return parameters[0].device


def _is_channels_last(model: nn.Module) -> bool:
    """Whether a model was put into channels-last memory, so that it runs in it; others may need planes."""
    kernels = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    return any(
        not kernel.is_contiguous() and kernel.is_contiguous(memory_format=torch.channels_last)
        for kernel in kernels
    )


def _source(data: object, device: torch.device, batch_size: int, size: int, channels_last: bool) -> Source:
    source: Source
    if isinstance(data, (str, Path)):
        dataset = open_dataset(Path(data)).seen_at(size, "size")
        source = HostSource(open_split(dataset, "test", batch_size), device)
    else:
        if size:
            raise UserError(f"size is for prepared data: give tensors in the size that is meant, got {size=}")
        source = TensorSource.of(data, batch_size, device)
    return source if channels_last else RowMajorSource(source)


def _classes(model: nn.Module, stream: EvaluationStream) -> int:
    """Return the number of classes, after the model has classified a batch and left it as it was."""
    batch = next(iter(stream.sample(2)))
    images = batch.images.clone()
    try:
        with torch.no_grad():
            logits = model.eval()(images)
    except Exception as error:  # Anybody's code may raise anything.
        shape = tuple(images.shape)
        raise UserError(f"the model does not accept images {shape}: {brief(error)}") from None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"the model must map {len(images)} images to logits ({len(images)}, C), got {found}")
    if logits.shape[1] < 2:
        raise UserError("the model must have a logit for each class, two at least, got 1")
    if not torch.equal(images, batch.images):
        raise UserError("the model must leave its images as they are, it changes them in place: clone them")
    most = int(stream.source.labels.max())
    if most >= logits.shape[1]:
        raise UserError(f"labels must be below the model's {logits.shape[1]} classes, got {most}")
    return logits.shape[1]


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Put the modes of all modules, and which parameters are trained, back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    # So that logits without a gradient are seen to be cut off from the images.
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
