"""A function of tensors, captured in a CUDA graph for each input shape and replayed from then on."""

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
WARM_UP_RUNS = 3
"""Runs before a capture, in which cuDNN, Inductor and Triton choose and compile their kernels."""


class Recorder(Protocol):
    """Records the work that a function launches on the device, so that it can be repeated."""

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run the function a few times; the caller undoes what it changes."""

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Return the function's result, whose values are undefined yet, and a replay that writes them."""


class CudaRecorder:
    """Records CUDA graphs of a function on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        # One memory pool for the graphs of all shapes. They may overwrite each other's memory: replays never
        # overlap, and a result need not outlive the next call (see Captured).
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = new_stream(device)

    def warm_up(self, function: Callable[[], object]) -> None:
        """Run on a side stream, the one that is captured later, as PyTorch asks of work before a capture."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UP_RUNS):
                    function()
        finally:
            # Also after an error: what was launched must have finished before its effects are undone.
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
            torch.cuda.synchronize(self.device)

    def record(self, function: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """Capture the function; its result lies in the graph's memory, and each replay overwrites it."""
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph does not restore the current stream if ending the capture fails: this does.
        with torch.cuda.stream(self._stream):
            try:
                # thread_local: the data loader's threads may call CUDA meanwhile, which would break a capture
                # in the default mode.
                with torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ):
                    result = function()
            except BaseException:
                self._end_failed_capture()
                raise
        return result, graph.replay

    def _end_failed_capture(self) -> None:
        """Tell the allocator that a failed capture has ended, which PyTorch before 2.12 does not."""
        index = self.device.index or torch.cuda.current_device()
        # It raises where PyTorch has ended it already.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(index, self._pool)
            torch._C._cuda_releasePool(index, self._pool)


class Captured(Generic[Result]):
    """A function that is recorded once for each input shape and replayed from then on.

    Its result is overwritten by the next call. If it cannot be captured, the log says so and it runs
    uncaptured from then on.

    Args:
        function: of tensors; reads nothing back to the host, and changes tensors in place only.
        recorder: captures and replays.
        snapshot: called before the warm-up; copies all that the function changes, and returns a function that
            restores it.
        name: of the function, for the log.
        patience: calls of each shape that run uncaptured before one is recorded.
    """

    def __init__(
        self,
        function: Callable[..., Result],
        recorder: Recorder,
        snapshot: Callable[[], Callable[[], None]],
        name: str = "the step",
        patience: int = 0,
    ) -> None:
        self.function = function
        self.recorder = recorder
        self.snapshot = snapshot
        self.name = name
        self.patience = patience
        self._calls: Counter[object] = Counter()
        self._recorded: dict[object, tuple[Sequence[Tensor], Result, Callable[[], None]]] = {}
        self._capturable = True

    def __call__(self, *inputs: Tensor) -> Result:
        """Run, or replay, on inputs (any shapes)."""
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        if self._capturable and key not in self._recorded:
            self._calls[key] += 1
            if self._calls[key] <= self.patience:
                return self.function(*inputs)
            self._try_to_record(key, inputs)
        if not self._capturable:
            return self.function(*inputs)
        static, result, replay = self._recorded[key]
        for static_input, given in zip(static, inputs, strict=True):
            static_input.copy_(given, non_blocking=True)
        replay()
        return result

    def _try_to_record(self, key: object, inputs: Sequence[Tensor]) -> None:
        restore = self.snapshot()
        # A graph reads its inputs from these addresses; each replay's inputs are copied into them.
        static = [tensor.clone() for tensor in inputs]
        try:
            self.recorder.warm_up(lambda: self.function(*static))
            # The warm-up has trained on this batch; a capture launches nothing.
            restore()
            self._recorded[key] = (static, *self.recorder.record(lambda: self.function(*static)))
        except Exception as error:  # A capture fails with whatever the offending operation raises.
            restore()
            self._capturable = False
            # Graphs of other shapes are not used any more; free their memory.
            self._recorded.clear()
            # The operation's own error is the context of the one that ending the capture raises.
            reason = brief(error.__context__ or error)
            log.warning("engine.graph: %s runs uncaptured (%s)", self.name, reason)


def captured(function: Callable[..., Result], device: torch.device, name: str) -> Callable[..., Result]:
    """Capture a function of tensors that has the same result however often it runs.

    A recording costs as much as five runs, so a shape is recorded at its third call: one that comes once or
    twice, such as an evaluation's last batch, is not worth it.
    """
    return Captured(function, CudaRecorder(device), _nothing_to_undo, name, patience=2)


def _nothing_to_undo() -> Callable[[], None]:
    return lambda: None


def snapshot_state(
    networks: Iterable[nn.Module], others: Iterable[Tensor], optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Callable[[], None]:  # fmt: skip
    """Copy weights, buffers, other tensors, momentum, loss scale and CUDA's random state.

    Returns:
        A function that copies all of it back into the same memory, and drops gradients; it may be called
        several times.
    """
    tensors = [*_tensors(networks), *others, *_momenta(optimizer)]
    copies = [tensor.detach().clone() for tensor in tensors]
    scale = scaler.state_dict()
    rng_state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @torch.no_grad()
    def restore() -> None:
        optimizer.zero_grad(set_to_none=True)
        _drop_interrupted_step(optimizer, scaler)
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(copy)
        if scale:
            scaler.load_state_dict(scale)
        if rng_state is not None:
            torch.cuda.set_rng_state(rng_state)

    return restore


def _drop_interrupted_step(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Drop what GradScaler stores in itself and in a fused optimizer for the time of a step.

    An error within the step would leave it there, and the next step would use it or refuse to run.
    """
    if scaler.is_enabled():
        scaler._per_optimizer_states.clear()
    for name in ("grad_scale", "found_inf"):
        if hasattr(optimizer, name):
            delattr(optimizer, name)


def _tensors(networks: Iterable[nn.Module]) -> list[Tensor]:
    return [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]


def _momenta(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = optimizer.state.values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]
