"""Calls over inputs in rotation: one by one from the host, or recorded in a CUDA graph."""

from collections.abc import Callable, Sequence

import torch

from benchmarks.harness.timing import Run

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
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for call in calls[:3]:
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    with torch.cuda.graph(graph):
        for number in range(total):
            calls[number % len(calls)]()

    def run(steps: int) -> None:
        for _ in range(steps):
            graph.replay()

    return run, total


def sets_beyond_cache(bytes_each: int, device: torch.device, most: int = 64) -> int:
    """Return how many sets of inputs make twice the last cache's size, so that none is found there."""
    cache = 1 << 20
    if device.type == "cuda":
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 1 << 26)
    return min(max(2 * cache // max(bytes_each, 1), 2), most)
