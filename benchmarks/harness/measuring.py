"""Measuring variants: in alternation (A, B, C, A, B, C, … so that drifts of the machine hit all alike), each
under its own switches, with the memory it takes, called from the host or replayed by a CUDA graph.
"""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from fastpeer.step.graph import CudaRecorder

Run = Callable[[int], None]
"""Does so many steps."""


@dataclass
class Rounds:
    """What alternation yields for one variant.

    Attributes:
        steps: done in each round.
        seconds: for one step, round by round.
    """

    steps: int
    seconds: list[float] = field(default_factory=list)

    def rates(self, per_step: float) -> list[float]:
        """Return units a second, given how many of them a step handles."""
        return [per_step / each for each in self.seconds]


@dataclass(frozen=True)
class Duration:
    """How long to measure.

    Attributes:
        rounds: of the alternation, at most.
        seconds: of a round for each variant, about.
        budget: seconds after which no further round begins; three are done in any case. Whoever builds the
            variants beforehand keeps to the same budget.
    """

    rounds: int
    seconds: float
    budget: float = 3600.0


LEAST_ROUNDS = 3
MOST_STEPS = 2000


def alternate(
    runs: Mapping[str, Run],
    device: torch.device,
    duration: Duration,
    around: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
    keep: Callable[[dict[str, Rounds]], None] = lambda found: None,
) -> dict[str, Rounds]:
    """Measure all variants in turn, round after round; they are to be warm already.

    Args:
        runs: what to measure, by name.
        device: where it computes.
        duration: how long.
        around: a context for a variant's rounds, such as the backend flags it wants.
        keep: takes what is known after each round, lest it is lost.
    """
    deadline = time.perf_counter() + duration.budget
    contexts = {name: (around or {}).get(name, nullcontext) for name in runs}
    found = {}
    for name, run in runs.items():
        with contexts[name]():
            found[name] = Rounds(_steps_lasting(duration.seconds, run, device))
    for number in range(duration.rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        for name, run in runs.items():
            with contexts[name]():
                found[name].seconds.append(seconds_of(run, found[name].steps, device) / found[name].steps)
        keep(found)
    return found


def seconds_of(run: Run, steps: int, device: torch.device) -> float:
    """Return how long `steps` steps take: by CUDA events there, else by the host's clock."""
    if device.type == "cuda":
        return _cuda_seconds(run, steps, device)
    began = time.perf_counter()
    run(steps)
    return time.perf_counter() - began


def paired_ratios(base: Rounds, other: Rounds) -> list[float]:
    """Return how many times faster `other` is, round by round: each against the base's time beside it."""
    return [slow / fast for slow, fast in zip(base.seconds, other.seconds, strict=True)]


def _cuda_seconds(run: Run, steps: int, device: torch.device) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    # From an idle device on: the host's own time before the first kernel counts too.
    torch.cuda.synchronize(device)
    start.record()
    run(steps)
    end.record()
    torch.cuda.synchronize(device)
    return float(start.elapsed_time(end)) / 1e3


def _steps_lasting(seconds: float, run: Run, device: torch.device) -> int:
    single = max(seconds_of(run, 1, device), 1e-6)
    # A single step can be mostly launch; a few more tell its cost in a row.
    few = min(max(int(seconds / 4 / single), 1), 20)
    each = max(seconds_of(run, few, device) / few, 1e-7)
    return min(max(round(seconds / each), 1), MOST_STEPS)


Call = Callable[[], object]
GRAPH_CALLS = 200
"""Calls recorded in one graph, at least: enough that its own launch vanishes among them."""


def in_turn(calls: Sequence[Call]) -> Run:
    """Return a run that makes one call a step, each time the next."""
    place = 0

    def run(steps: int) -> None:
        nonlocal place
        for _ in range(steps):
            calls[place]()
            place = (place + 1) % len(calls)

    return run


def replayed(calls: Sequence[Call], device: torch.device) -> tuple[Run, int]:
    """Record the calls, round and round, in a CUDA graph.

    Returns:
        A run that replays the graph once a step, and the number of calls in it.
    """
    total = -(-GRAPH_CALLS // len(calls)) * len(calls)
    recorder = CudaRecorder(device)
    recorder.warm_up(calls[0])

    def all_calls() -> None:
        for number in range(total):
            calls[number % len(calls)]()

    _, replay = recorder.record(all_calls)

    def run(steps: int) -> None:
        for _ in range(steps):
            replay()

    return run, total


def sets_beyond_cache(bytes_each: int, device: torch.device, most: int = 64) -> int:
    """Return how many sets of inputs make twice the last cache's size, so that none is found there."""
    cache = 1 << 20
    if device.type == "cuda":
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 1 << 26)
    return min(max(2 * cache // max(bytes_each, 1), 2), most)


@dataclass(frozen=True)
class Flags:
    """Which switches a variant runs under.

    Attributes:
        benchmark: cuDNN tries its algorithms out at each new shape.
        cudnn_tf32: convolutions may round float32 to TF32.
        matmul_tf32: matrix products may.
    """

    benchmark: bool
    cudnn_tf32: bool
    matmul_tf32: bool

    @classmethod
    def current(cls) -> "Flags":
        """Read what is set now."""
        return cls(
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.allow_tf32,
            torch.backends.cuda.matmul.allow_tf32,
        )

    def set(self) -> None:
        """Set them for the process."""
        torch.backends.cudnn.benchmark = self.benchmark
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.matmul_tf32

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set them, and put back what was set before."""
        before = Flags.current()
        self.set()
        try:
            yield
        finally:
            before.set()


def released_flags() -> Flags:
    """Return what the released code runs under: PyTorch's defaults and cuDNN's search for algorithms."""
    return Flags(benchmark=True, cudnn_tf32=True, matmul_tf32=False)


@dataclass(frozen=True)
class Memory:
    """Bytes that one variant takes.

    Attributes:
        allocated: highest sum of tensors alive in a step, of weights and optimizer state too. What a
            captured CUDA graph uses inside its pool is not in it.
        reserved: what the variant keeps from others while it runs, graph pools included.
    """

    allocated: int
    reserved: int


class MemoryMeter:
    """Measures one variant beside others that stay where they are; make it before the variant is built.

    On the CPU nothing is measured: PyTorch keeps no count there.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            self._tidy()
            self.allocated = torch.cuda.memory_allocated(device)
            self.reserved = torch.cuda.memory_reserved(device)

    def of(self, step: Callable[[], object]) -> Memory | None:
        """Do one step of a variant that is built and warm, and return what it takes."""
        if self.device.type != "cuda":
            return None
        self._tidy()
        torch.cuda.reset_peak_memory_stats(self.device)
        step()
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device)
        return Memory(peak - self.allocated, torch.cuda.memory_reserved(self.device) - self.reserved)

    def _tidy(self) -> None:
        gc.collect()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
