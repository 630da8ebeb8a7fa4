"""Batches out of a .beton file, through FFCV."""

from collections.abc import Generator
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpeer.data.crops import centre_boxes, flipped, random_boxes
from fastpeer.errors import UserError, one_line
from fastpeer.kernels.crop_and_flip import augmented


class BetonLoader:
    """Decodes the samples of one .beton file in any order asked for; its images are of one size.

    FFCV compiles its pipeline once for each loader: keep it, and ask it for as many epochs as needed.

    Args:
        path: a file written by `fastpeer prep`.
        batch_size: samples in a batch; the last may hold fewer.
    """

    one_size = True
    """Whether decoded images are the same in each epoch, and so can be kept."""

    def __init__(self, path: Path, batch_size: int) -> None:
        self.path = path
        self.batch_size = batch_size
        self._loader = _ffcv_loader(path, batch_size)

    def with_batch_size(self, batch_size: int) -> "BetonLoader":
        """Return a loader of the same images in batches of another size."""
        return BetonLoader(self.path, batch_size)

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,), without reading an image."""
        field = self._loader.field_name_to_f_ix["label"]
        labels: np.ndarray = self._loader.reader.metadata[f"f{field}"]
        return labels

    def augmented(self, images: Tensor, indices: Tensor, key: int) -> Tensor:
        """Do what of the augmentation is done on the device; see `kernels.crop_and_flip.augmented`."""
        return augmented(images, indices, key)

    def batches(
        self, order: np.ndarray, key: int | None = None
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield images uint8 (B, 3, H, W), channels-last, and labels int64 (B,), in the given order.

        FFCV writes later batches into the same memory: copy what is to outlive the next batch.

        Args:
            order: indices of samples (n,).
            key: of what of the augmentation is done while decoding, if any is; None: none.
        """
        from ffcv.loader.epoch_iterator import EpochIterator

        if len(order) == 0:
            return
        self._look_up(order, key)
        # One type of index for all calls: FFCV compiles anew for each.
        iterator = EpochIterator(self._loader, np.ascontiguousarray(order, dtype=np.uint64))
        try:
            for images, labels in iterator:
                yield images, labels[:, 0]
        finally:
            _stop(iterator)

    def _look_up(self, order: np.ndarray, key: int | None) -> None:
        """Tell FFCV what it is to know of the samples beside their order: nothing."""


class JpegLoader(BetonLoader):
    """Decodes images of many sizes, kept as JPEG, to one size; each pixel is a function of key and index.

    Args:
        path: a file written by `fastpeer prep --jpeg`.
        batch_size: samples in a batch; the last may hold fewer.
        side: height and width of the decoded images.
        scale: smallest and largest part of an image's area that is shown in training.
    """

    one_size = False

    def __init__(self, path: Path, batch_size: int, side: int, scale: tuple[float, float]) -> None:
        self.path = path
        self.batch_size = batch_size
        self.side = side
        self.scale = scale
        self._loader = _ffcv_loader(path, batch_size, side)

    def with_batch_size(self, batch_size: int) -> "JpegLoader":
        """Return a loader of the same images in batches of another size."""
        return JpegLoader(self.path, batch_size, self.side, self.scale)

    def augmented(self, images: Tensor, indices: Tensor, key: int) -> Tensor:
        """Flip half of the images: they are random parts already."""
        return flipped(images, indices, key)

    def _look_up(self, order: np.ndarray, key: int | None) -> None:
        """Give each sample the box that is cut out of it: a random one, or the centre without a key."""
        from fastpeer.data.box_decoder import BOX, with_boxes

        # A copy, since FFCV may still read for an epoch that began before.
        metadata = with_boxes(self._loader.reader.metadata, f"f{self._loader.field_name_to_f_ix['image']}")
        self._loader.reader.metadata = metadata
        field = metadata[f"f{self._loader.field_name_to_f_ix['image']}"]
        samples = order.astype(np.int64)
        heights, widths = (field[name][samples].astype(np.int64) for name in ("height", "width"))
        if key is None:
            boxes = centre_boxes(heights, widths)
        else:
            boxes = random_boxes(key, samples, heights, widths, self.scale)
        for name, column in zip(BOX, boxes.T, strict=True):
            field[name][samples] = column


def _ffcv_loader(path: Path, batch_size: int, side: int = 0) -> Any:
    """Return FFCV's loader: of images of one size, or with a side of boxes out of JPEGs."""
    threads = torch.get_num_threads()
    try:
        _import_ffcv()
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader
        from ffcv.transforms import ToTensor, ToTorchImage

        from fastpeer.data.box_decoder import BoxDecoder

        decoder = BoxDecoder(side) if side else SimpleRGBImageDecoder()
        images = [decoder, ToTensor(), ToTorchImage(convert_back_int16=False)]
        pipelines = {"image": images, "label": [IntDecoder(), ToTensor()]}
        # FFCV sets torch's threads to its own, again at every epoch and from another thread: keep them equal.
        return Loader(
            str(path), batch_size, num_workers=threads, os_cache=True, drop_last=False, pipelines=pipelines
        )
    except ImportError as error:
        raise UserError(f"FFCV cannot be imported ({one_line(error)}): make .venv/ready builds it") from None
    except Exception as error:  # FFCV raises whatever its parsing of a foreign file runs into.
        raise UserError(f"{path}: FFCV cannot read it ({one_line(error)}); run fastpeer prep again") from None
    finally:
        torch.set_num_threads(threads)


def _import_ffcv() -> None:
    """Import FFCV without the four seconds in which numba compiles for a dictionary of two names."""
    import numba.typed

    typed = numba.typed.Dict
    numba.typed.Dict = dict
    try:
        import ffcv.fields.rgb_image  # noqa: F401
    finally:
        numba.typed.Dict = typed


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
