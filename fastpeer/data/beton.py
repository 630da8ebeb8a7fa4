"""Batches out of a .beton file, through FFCV."""

from collections.abc import Generator
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpeer.errors import UserError, one_line


class BetonLoader:
    """Decodes the samples of one .beton file in any order asked for.

    FFCV compiles its pipeline once for each loader: keep it, and ask it for as many epochs as needed.

    Args:
        path: a file written by `fastpeer prep`.
        batch_size: samples in a batch; the last may hold fewer.
    """

    def __init__(self, path: Path, batch_size: int) -> None:
        self.path = path
        self.batch_size = batch_size
        self._loader = _ffcv_loader(path, batch_size)

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,), without reading an image."""
        field = self._loader.field_name_to_f_ix["label"]
        labels: np.ndarray = self._loader.reader.metadata[f"f{field}"]
        return labels

    def batches(self, order: np.ndarray) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield images uint8 (B, 3, H, W), channels-last, and labels int64 (B,), in the given order.

        FFCV writes later batches into the same memory: copy what is to outlive the next batch.

        Args:
            order: indices of samples (n,).
        """
        from ffcv.loader.epoch_iterator import EpochIterator

        if len(order) == 0:
            return
        # One type of index for all calls: FFCV compiles anew for each.
        iterator = EpochIterator(self._loader, np.ascontiguousarray(order, dtype=np.uint64))
        try:
            for images, labels in iterator:
                yield images, labels[:, 0]
        finally:
            _stop(iterator)


def _ffcv_loader(path: Path, batch_size: int) -> Any:
    threads = torch.get_num_threads()
    try:
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader
        from ffcv.transforms import ToTensor, ToTorchImage

        images = [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage(convert_back_int16=False)]
        pipelines = {"image": images, "label": [IntDecoder(), ToTensor()]}
        # FFCV sets torch's threads to its own, again at every epoch and from another thread: keep them equal.
        return Loader(
            str(path), batch_size, num_workers=threads, os_cache=True, drop_last=False, pipelines=pipelines
        )
    except ImportError as error:
        raise UserError(
            f"FFCV cannot be imported ({one_line(error)}): see the README's section on installing"
        ) from None
    except Exception as error:  # FFCV raises whatever its parsing of a foreign file runs into.
        raise UserError(f"{path}: FFCV cannot read it ({one_line(error)}); run fastpeer prep again") from None
    finally:
        torch.set_num_threads(threads)


def _stop(iterator: Any) -> None:
    """End FFCV's thread, which otherwise waits for ever once an epoch is left early."""
    iterator.close()
    # No further batches: those that are ready are taken off the queue, so that the thread sees its end.
    iterator.iter_ixes = iter(())
    while iterator.is_alive():
        try:
            iterator.output_queue.get(timeout=0.05)
        except Empty:
            continue
