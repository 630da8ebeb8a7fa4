"""fastpeer from Python: `load` opens a finished network, `evaluate` attacks anybody's."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from fastpeer.config import Norm, check_distances
from fastpeer.data.dataset import open_dataset
from fastpeer.data.host import HostSource
from fastpeer.data.split import open_split
from fastpeer.data.stream import EvaluationStream, Source, spread
from fastpeer.data.tensors import RowMajorSource, TensorSource
from fastpeer.device import choose_device, placed
from fastpeer.errors import UserError, brief
from fastpeer.evaluation.accuracy import Classified, classify_under_attack, evaluation_options
from fastpeer.evaluation.attack_names import parse_attacks
from fastpeer.evaluation.attacks import AttackSettings
from fastpeer.evaluation.hidden_gradients import hidden_gradients
from fastpeer.evaluation.opening import Wanted, open_network
from fastpeer.evaluation.results import wilson_interval
from fastpeer.own_code import Untrusted, trusting
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
    device: str = "cpu",
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
        mean: normalisation inside the network, one number or three; empty: as its run or file records.
        std: divides each channel after that.
        weights_key: which weights of a file that holds several sets of them.
        trust: import a class of your own that a run names; otherwise only `model`. It runs code.

    Returns:
        A module that maps images (B, 3, H, W) in [0, 1] to logits (B, classes).

    Raises:
        fastpeer.UserError: there is no such network, or it cannot be built; a line that says what to do.
    """
    wanted = Wanted(
        checkpoint=checkpoint, model=model, classes=classes, size=size, mean=tuple(mean), std=tuple(std),
        weights_key=weights_key,
    )  # fmt: skip
    with trusting(None if trust else {model}):
        try:
            opened = open_network(Path(path), wanted, flag="")
        except Untrusted as error:
            raise Untrusted(str(error).replace("--trust", "trust=True")) from None
    return placed(opened.network, choose_device(device), torch.float32).eval()


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
        size: side of the images, of a data set kept as JPEG.
        batch_size: images attacked at once.
        seed: of the random starts.

    Returns:
        A result for each attack, by name.

    Raises:
        fastpeer.UserError: model or data do not fit; a line that says what must be.
    """
    names = parse_attacks(attacks if isinstance(attacks, str) else ",".join(attacks))
    _check_settings(norm, epsilon, step_size, batch_size)
    device = _device_of(model)
    source = _source(data, device, batch_size, size, _is_channels_last(model))
    chosen = spread(np.arange(len(source.labels)), examples)
    stream = EvaluationStream(source, chosen, torch.float32)
    number_format("fp32").allow_tf32()
    with _as_it_was(model):
        settings = AttackSettings(
            epsilon=epsilon, step_size=step_size, classes=_classes(model, stream), seed=seed,
            batch_size=batch_size, options=evaluation_options(device), norm=norm,
        )  # fmt: skip
        hidden = hidden_gradients(model, stream) if names != ["clean"] else []
        return {name: _attacked(name, model, stream, settings, hidden) for name in names}


def _attacked(
    name: str, model: nn.Module, stream: EvaluationStream, settings: AttackSettings, hidden: Sequence[str]
) -> AttackResult:
    began = perf_counter()
    found: Classified = classify_under_attack(name, model, stream, settings, lambda done, stage="": None)
    warnings = () if name == "clean" else tuple(dict.fromkeys([*hidden, *found.reasons]))
    stands = tuple(found.correct.tolist())
    return AttackResult(
        attack=name, correct=sum(stands), images=len(stands), total=len(stream.source.labels),
        non_finite=int((~found.finite).sum()), epsilon=settings.epsilon, step_size=settings.step_size,
        norm=settings.norm, seed=settings.seed, seconds=perf_counter() - began, stands=stands,
        broken=dict(found.broken), warnings=warnings,
    )  # fmt: skip


def _check_settings(norm: Norm, epsilon: float, step_size: float, batch_size: int) -> None:
    if norm not in ("linf", "l2"):
        raise UserError(f"norm must be linf or l2, got {norm!r}")
    if batch_size < 1:
        raise UserError(f"batch_size must be 1 or more, got {batch_size}")
    try:
        check_distances(norm, epsilon=epsilon, step_size=step_size)
    except ValueError as error:
        raise UserError(str(error)) from None


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
