"""A network under AutoAttack's attacks: searched in its fast form, judged in its own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from fastpeer.kernels.choice import torch_kernels
from fastpeer.step.options import Options
from fastpeer.step.precision import number_format
from fastpeer.victims.autograd import AutogradVictim
from fastpeer.victims.chain import ChainVictim
from fastpeer.victims.compiled import CompiledVictim, EagerVictim
from fastpeer.victims.windowed import WindowedLogits, windowed_logits

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps logits (B, C), labels (B,) and target classes (B,) to a loss for each image (B,)."""
CLOSE = 1e-4
"""Distance of two logits, relative to the largest, below which rounding may change their order."""
CLOSE_IN_TF32 = 1e-2


class Passes:
    """Counts how many images went through a network, forward and backward each once, and tells.

    Args:
        told: called after each pass of a batch.
    """

    def __init__(self, told: Callable[[], None] = lambda: None) -> None:
        self.number = 0
        self.told = told

    def add(self, images: int) -> None:
        """Count images that have gone one way."""
        self.number += images
        self.told()


class AttackedNetwork:
    """What AutoAttack's attacks need of a network; images are float32 (B, 3, H, W), contiguous.

    Args:
        network: in eval mode, float32; it alone says which images are classified wrongly.
        options: how it is attacked in its place; None: as it is.
        device: of the images.
        passes: counts the images that go through it.
        tf32: round products to TF32 on CUDA, except where the network judges.
    """

    def __init__(
        self,
        network: nn.Module,
        options: Options | None,
        device: torch.device,
        passes: Passes,
        tf32: bool = False,
    ) -> None:
        self.network, self.passes, self.tf32 = network, passes, tf32
        self.fast = options is not None
        self._close = CLOSE_IN_TF32 if tf32 else CLOSE
        self._layout = torch.channels_last if self.fast else torch.contiguous_format
        self._options, self._device = options or Options(), device
        self._victim = _victim(network, self._options, device, self.fast)
        self._pads = self._options.graph
        self._logits = self._recorded(lambda images: (self._victim.logits(images),))
        self._gradients: dict[Loss, Callable[..., tuple[Tensor, ...]]] = {}

    def logits(self, images: Tensor) -> Tensor:
        """Return logits (B, C), those of the fast network."""
        with self._searching():
            (logits,) = self._run(self._logits, images)
        self.passes.add(len(images))
        return logits

    def gradient(
        self, loss: Loss, images: Tensor, labels: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return a loss's gradient at the images (B, 3, H, W), the logits (B, C) and the loss (B,)."""
        if loss not in self._gradients:
            self._gradients[loss] = self._recorded(partial(_gradient, self._victim, loss))
        with self._searching():
            gradient, logits, values = self._run(self._gradients[loss], images, labels, targets)
        self.passes.add(2 * len(images))
        return gradient.contiguous(), logits, values

    def windowed(self, images: Tensor, side: int) -> WindowedLogits | None:
        """Return the fast network's logits of images that change in windows, if they are cheaper than all.

        Args:
            images: (B, 3, H, W), as they are at first.
            side: the largest height or width of a window.
        """
        if not isinstance(self._victim, ChainVictim) or self._pads:
            return None
        return windowed_logits(self._victim.chain, images, side)

    @torch.no_grad()
    def judged(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) of the network itself."""
        logits: Tensor = self.network(images.contiguous())
        self.passes.add(len(images))
        return logits

    def fallen(self, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return which images (B,) the network itself classifies wrongly, or with logits that are not finite.

        It is asked only where `logits`, which `logits` or `gradient` returned for the images, say so or
        nearly.
        """
        if not self.fast:
            return misclassified(logits, labels)
        certain, predicted = self._certain(logits)
        right = certain & (predicted == labels)
        found = torch.zeros_like(right)
        doubtful = (~right).nonzero().squeeze(1)
        if len(doubtful):
            found[doubtful] = misclassified(self.judged(images[doubtful]), labels[doubtful])
        return found

    def sure_logits(self, images: Tensor) -> Tensor:
        """Return logits (B, C): those of the network itself where the fast one's two largest are close."""
        logits = self.logits(images)
        if not self.fast:
            return logits
        close = (~self._certain(logits)[0]).nonzero().squeeze(1)
        if len(close):
            logits = logits.index_copy(0, close, self.judged(images[close]))
        return logits

    def _certain(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return where rounding cannot change the class (B,), and the class (B,)."""
        largest, classes = logits.topk(2, dim=1)
        return largest[:, 0] - largest[:, 1] > self._close * logits.abs().amax(1), classes[:, 0]

    def _recorded(self, function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
        return self._options.recorded(function, self._device, "AutoAttack")

    def _run(self, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        count = len(inputs[0])
        if self._pads:
            inputs = tuple(_padded(tensor, rung(count)) for tensor in inputs)
        found = function(inputs[0].contiguous(memory_format=self._layout), *inputs[1:])
        # Copied: the next replay of a graph overwrites them.
        return tuple(each[:count].clone() for each in found) if self._pads else found

    @contextmanager
    def _searching(self) -> Iterator[None]:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Return which images (B,) are classified wrongly, or with logits (B, C) that are not finite."""
    return (logits.argmax(1) != labels) | ~logits.isfinite().all(1)


def rung(count: int) -> int:
    """Return the next number of at most three significant bits: a graph is captured for few sizes."""
    step = 1 << max(count.bit_length() - 3, 0)
    return -(-count // step) * step


def _padded(tensor: Tensor, size: int) -> Tensor:
    missing = size - len(tensor)
    return torch.cat([tensor, tensor[:1].expand(missing, *tensor.shape[1:])]) if missing else tensor


def _victim(network: nn.Module, options: Options, device: torch.device, fast: bool) -> EagerVictim:
    if not fast:
        return AutogradVictim(network, torch_kernels())
    victim = options.victim_factory(number_format("fp32"), device).victim(network, "network")
    assert not isinstance(victim, CompiledVictim)  # without a compiler there is none
    victim.refresh()
    return victim


def _gradient(
    victim: EagerVictim, loss: Loss, images: Tensor, labels: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    kept: list[Tensor] = []

    def at_logits(logits: Tensor) -> Tensor:
        leaf = logits.detach().requires_grad_()
        with torch.enable_grad():
            values = loss(leaf, labels, targets)
            total = values.sum()
        kept.extend((leaf.detach(), values.detach()))
        return torch.autograd.grad(total, leaf)[0]

    gradient = victim.gradient_from(images, at_logits)
    logits, values = kept
    return gradient, logits, values
