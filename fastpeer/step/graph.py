"""A function of tensors, recorded as a CUDA graph for each shape that it meets, and replayed from then on."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from fastpeer.device import new_stream
from fastpeer.errors import brief

log = logging.getLogger(__name__)
Result = TypeVar("Result")
WARM_UP = 3
"""Runs before a capture: cuDNN, Inductor and Triton choose and compile their kernels in them."""


class Recorder(Protocol):
    """Records work on the device, and does it again on demand."""

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run a function that leaves traces which are undone afterwards."""

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Return what the function returns, in memory that stays, and what fills it anew."""


class CudaRecorder:
    """Records CUDA graphs, all in one memory pool."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = new_stream(device)

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run on the stream that is recorded later."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP):
                    function()
        finally:
            # Also after an error: what was launched must be over before it is undone.
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
            torch.cuda.synchronize(self.device)

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Capture; threads of the data loader may go on with what they do."""
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph leaves its stream the current one where ending a capture fails.
        with torch.cuda.stream(self._stream):
            try:
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    result = function()
            except BaseException:
                self._stop_recording()
                raise
        return result, graph.replay

    def _stop_recording(self) -> None:
        """Tell the allocator that a failed capture is over, which PyTorch before 2.12 forgets."""
        index = self.device.index or torch.cuda.current_device()
        # It refuses where there is nothing left to end.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)


class Captured(Generic[Result]):
    """Replays a function of tensors; what it returns is overwritten by the next call.

    Args:
        function: reads nothing back to the host, and finds whatever it changes in the same memory each time.
        recorder: does the recording.
        keep: called before the warm-up; returns what brings everything back that the function changes.
        what: the function's name in the log, if it cannot be captured; it is called as it is from then on.
        patience: calls of each shape that run as they are, before one is recorded.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        recorder: Recorder,
        keep: Callable[[], Callable[[], None]],
        what: str = "the step",
        patience: int = 0,
    ) -> None:
        self.function = function
        self.recorder = recorder
        self.keep = keep
        self.what = what
        self.patience = patience
        self._seen: Counter[object] = Counter()
        self._recorded: dict[object, tuple[Sequence[Tensor], Result, Callable[[], None]]] = {}
        self._works = True

    def __call__(self, *inputs: Tensor) -> Result:
        """Run, or replay, on inputs (any shapes)."""
        key = tuple((one.shape, one.dtype) for one in inputs)
        if self._works and key not in self._recorded:
            self._seen[key] += 1
            if self._seen[key] <= self.patience:
                return self.function(*inputs)
            self._try_to_record(key, inputs)
        if not self._works:
            return self.function(*inputs)
        static, result, replay = self._recorded[key]
        for own, given in zip(static, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        replay()
        return result

    def _try_to_record(self, key: object, inputs: Sequence[Tensor]) -> None:
        undo = self.keep()
        static = [one.clone() for one in inputs]
        try:
            self.recorder.warm_up(lambda: self.function(*static))
            undo()
            self._recorded[key] = (static, *self.recorder.record(lambda: self.function(*static)))
        except Exception as error:  # A capture fails with whatever the offending operation raises.
            undo()
            self._works = False
            # What was recorded for other shapes is not used any more, but holds its memory.
            self._recorded.clear()
            # Where a capture fails, the error it began with is the context of the one it ends with.
            reason = brief(error.__context__ or error)
            log.warning("engine.graph: %s runs uncaptured (%s)", self.what, reason)


def captured(function: Callable[..., Tensor], device: torch.device, what: str) -> Callable[..., Tensor]:
    """Capture a function of tensors that may run any number of times with the same result.

    A recording costs as much as five runs: a shape that comes once or twice, such as an evaluation's last
    batch, is not worth it.
    """
    return Captured(function, CudaRecorder(device), _nothing_to_undo, what, patience=2)


def _nothing_to_undo() -> Callable[[], None]:
    return lambda: None


def keep_state(
    networks: Iterable[nn.Module], others: Iterable[Tensor], optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Callable[[], None]:  # fmt: skip
    """Copy weights, buffers, other tensors, momentum, loss scale and CUDA's random state; drop gradients.

    Returns:
        Brings all of it back, into the same memory, as often as it is called.
    """
    tensors = [*_tensors(networks), *others, *_momenta(optimizer)]
    copies = [one.detach().clone() for one in tensors]
    scale = scaler.state_dict()
    random = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @torch.no_grad()
    def restore() -> None:
        optimizer.zero_grad(set_to_none=True)
        _forget_interrupted_step(optimizer, scaler)
        for one, copy in zip(tensors, copies, strict=True):
            one.copy_(copy)
        if scale:
            scaler.load_state_dict(scale)
        if random is not None:
            torch.cuda.set_rng_state(random)

    return restore


def _forget_interrupted_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Drop what a scaler leaves with itself and a fused optimizer if the step between fails."""
    if scaler.is_enabled():
        scaler._per_optimizer_states.clear()
    for name in ("grad_scale", "found_inf"):
        if hasattr(optimizer, name):
            delattr(optimizer, name)


def _tensors(networks: Iterable[nn.Module]) -> list[Tensor]:
    return [one for network in networks for one in (*network.parameters(), *network.buffers())]


def _momenta(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [one for state in optimizer.state.values() for one in state.values() if isinstance(one, Tensor)]
