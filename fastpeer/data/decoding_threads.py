"""Batches of JPEGs decoded in threads, some batches ahead of their use."""

import itertools
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from fastpeer.data.jpeg_decoder import JpegDecoder

AHEAD = 4
"""Batches that are decoded while one is used, as in FFCV: three in its queue, and one waiting for a place."""
FEWEST = 8
"""Images of a batch that are worth a task of their own."""


class DecodingThreads:
    """Decodes batches in as many threads as torch has, which stay for later epochs.

    The threads are not those of an epoch: FFCV's library keeps what it needs to decode for each thread that
    ever called it.

    Args:
        decode: what decodes some samples into an array.
        size: height and width of the decoded images, in pixels.
    """

    def __init__(self, decode: JpegDecoder, size: tuple[int, int]) -> None:
        self._decode, self._size = decode, size
        threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads)
        # Whole batches keep the threads busy; parts of them only where there are more threads than batches.
        self._parts = -(-threads // AHEAD)

    def batches(
        self, samples: np.ndarray, boxes: np.ndarray | None, batch_size: int
    ) -> Generator[np.ndarray, None, None]:
        """Yield images uint8 (B, H, W, 3), whose memory is used again once the next are asked for.

        Args:
            samples: indices of the samples (n,).
            boxes: a crop of each (n, 4), or None, as `decode` takes them.
            batch_size: samples in a batch.
        """
        memory = itertools.cycle(self._memory(min(batch_size, len(samples))))
        begun: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
        try:
            for first in range(0, len(samples), batch_size):
                part = slice(first, first + batch_size)
                images = next(memory)[: len(samples[part])]
                begun.append(
                    (images, self._begin(samples[part], None if boxes is None else boxes[part], images))
                )
                if len(begun) > AHEAD:
                    yield _finished(*begun.popleft())
            while begun:
                yield _finished(*begun.popleft())
        finally:
            for _, tasks in begun:
                _cancel(tasks)

    def _memory(self, batch_size: int) -> list[np.ndarray]:
        """Return memory for a batch in use and those ahead; new memory for each would cost time."""
        return [np.empty((batch_size, *self._size, 3), np.uint8) for _ in range(1 + AHEAD)]

    def _begin(self, samples: np.ndarray, boxes: np.ndarray | None, images: np.ndarray) -> list[Future[None]]:
        share = max(FEWEST, -(-len(samples) // self._parts))
        parts = [slice(first, first + share) for first in range(0, len(samples), share)]
        return [
            self._pool.submit(
                self._decode, samples[part], images[part], None if boxes is None else boxes[part]
            )
            for part in parts
        ]


def _finished(images: np.ndarray, tasks: list[Future[None]]) -> np.ndarray:
    try:
        for task in tasks:
            task.result()
    finally:
        _cancel(tasks)
    return images


def _cancel(tasks: list[Future[None]]) -> None:
    """Drop what has not begun; what has begun ends soon, in memory of this epoch alone."""
    for task in tasks:
        task.cancel()
