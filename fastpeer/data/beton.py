"""Decoded batches from a .beton file, read with FFCV: JPEGs, or uncompressed images of one size."""

from collections.abc import Generator
from copy import copy
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastpeer.data.beton_file import Samples, common_size, map_samples, require_jpegs
from fastpeer.data.crops import boxes_of, flipped
from fastpeer.data.jpeg_decoder import ffcv_is_missing
from fastpeer.errors import UserError, one_line
from fastpeer.kernels.crop_and_flip import augmented


class BetonLoader:
    """Reads the samples of a .beton file in any order; its images are stored uncompressed at one size.

    FFCV compiles its pipeline once for each loader, which takes seconds: keep a loader for all epochs, and
    make others of the same file with `with_batch_size`.

    Args:
        path: a file written by `fastpeer prep`.
        batch_size: samples in a batch; the last may have fewer.
        samples: of that file, where it has been mapped already.

    Raises:
        UserError: FFCV cannot be imported, or the file cannot be read (`map_samples`), or has images of
            several sizes.
    """

    one_size = True

    def __init__(self, path: Path, batch_size: int, samples: Samples | None = None) -> None:
        self.path = path
        self.batch_size = batch_size
        _require_ffcv(path, "use --data.reader numpy")
        # Before FFCV sees the file: its compiled code trusts what it reads there.
        common_size(path, samples or map_samples(path))
        self._loader = _ffcv_loader(path, batch_size)

    def with_batch_size(self, batch_size: int) -> "BetonLoader":
        """Return a loader of the same file with another batch size, which shares the compiled pipeline."""
        other, other._loader = copy(self), copy(self._loader)
        other.batch_size = other._loader.batch_size = batch_size
        return other

    @property
    def labels(self) -> np.ndarray:
        """Labels of all samples, int64 (N,)."""
        field = self._loader.field_name_to_f_ix["label"]
        labels: np.ndarray = self._loader.reader.metadata[f"f{field}"]
        return labels

    def augmented(self, images: Tensor, indices: Tensor, key: int) -> Tensor:
        """Apply the whole augmentation; see `kernels.crop_and_flip.augmented`."""
        return augmented(images, indices, key)

    def batches(
        self, order: np.ndarray, key: int | None = None
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield batches, see `fastpeer.data.loader.Loader`; FFCV does reuse the memory of a batch."""
        from ffcv.loader.epoch_iterator import EpochIterator

        if len(order) == 0:
            return
        self._set_crops(order, key)
        # In the file's order of fields.
        image, label = map(list(self._loader.pipeline_specs).index, ("image", "label"))
        # The same index dtype in all calls: FFCV compiles again for another one.
        iterator = EpochIterator(self._loader, np.ascontiguousarray(order, dtype=np.uint64))
        try:
            for batch in iterator:
                yield batch[image], batch[label][:, 0]
        finally:
            _stop(iterator)

    def _set_crops(self, order: np.ndarray, key: int | None) -> None:
        """Set the crop of each sample before an epoch; images of one size are not cropped while decoding."""


class JpegLoader(BetonLoader):
    """Decodes images of many sizes, stored as JPEG, and resizes a crop of each to one size.

    A sample's pixels depend on the key and its index alone, not on the order or on FFCV's threads.

    Args:
        path: a file written by `fastpeer prep --jpeg`.
        batch_size: samples in a batch; the last may have fewer.
        side: height and width of the decoded images, in pixels.
        scale: smallest and largest area of a training crop, as a share of the image's area.

    Raises:
        UserError: FFCV cannot be imported, or the file cannot be read (`map_samples`), or has other images
            than JPEGs.
    """

    one_size = False

    def __init__(self, path: Path, batch_size: int, side: int, scale: tuple[float, float]) -> None:
        self.path = path
        self.batch_size = batch_size
        self.side = side
        self.scale = scale
        _require_ffcv(path, "prepare the images without --jpeg")
        require_jpegs(path, map_samples(path))
        self._loader = _ffcv_loader(path, batch_size, side)

    def augmented(self, images: Tensor, indices: Tensor, key: int) -> Tensor:
        """Flip half of the images; their random crops were taken while decoding."""
        return flipped(images, indices, key)

    def _set_crops(self, order: np.ndarray, key: int | None) -> None:
        """Write each sample's crop into FFCV's metadata: a random one, or the centre without a key."""
        from fastpeer.data.box_decoder import BOX, with_boxes

        image = f"f{self._loader.field_name_to_f_ix['image']}"
        # A copy: threads of an epoch that was left early may still read the old one.
        metadata = with_boxes(self._loader.reader.metadata, image)
        self._loader.reader.metadata = metadata
        field = metadata[image]
        samples = order.astype(np.int64)
        heights, widths = (field[name][samples].astype(np.int64) for name in ("height", "width"))
        boxes = boxes_of(key, samples, heights, widths, self.scale)
        for name, column in zip(BOX, boxes.T, strict=True):
            field[name][samples] = column


def _ffcv_loader(path: Path, batch_size: int, side: int = 0) -> Any:
    """Return FFCV's loader of images of one size, or with a side of JPEGs' crops, resized to it.

    The file has passed `map_samples`.
    """
    threads = torch.get_num_threads()
    try:
        from ffcv.fields.basics import IntDecoder
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader import Loader
        from ffcv.reader import Reader
        from ffcv.transforms import ToTensor, ToTorchImage

        from fastpeer.data.box_decoder import BoxDecoder

        decoder = BoxDecoder(side) if side else SimpleRGBImageDecoder()
        images = [decoder, ToTensor(), ToTorchImage(convert_back_int16=False)]
        others = dict.fromkeys(Reader(str(path)).field_names)
        pipelines = {**others, "image": images, "label": [IntDecoder(), ToTensor()]}
        # FFCV sets torch's number of threads to its number of workers, again at each epoch and from another
        # thread, where it cannot be undone: the two numbers must be equal.
        return Loader(
            str(path), batch_size, num_workers=threads, os_cache=True, drop_last=False, pipelines=pipelines
        )
    except Exception as error:  # FFCV does not check a foreign file: parsing it may raise anything.
        raise UserError(f"{path}: FFCV cannot read it ({one_line(error)}); run fastpeer prep again") from None
    finally:
        torch.set_num_threads(threads)


def _require_ffcv(path: Path, instead: str) -> None:
    try:
        _import_ffcv()
    except ImportError as error:
        raise ffcv_is_missing(path, error, instead) from None


def _import_ffcv() -> None:
    """Import FFCV with a plain dict in place of its typed dictionary, which numba compiles for 4 s."""
    import numba.typed

    typed = numba.typed.Dict
    numba.typed.Dict = dict
    try:
        import ffcv.fields.rgb_image  # noqa: F401
    finally:
        numba.typed.Dict = typed


def _stop(iterator: Any) -> None:
    """End FFCV's thread, which would otherwise wait forever if an epoch is left early."""
    iterator.close()
    # No further batches, and the decoded ones are taken off the full queue that the thread may be waiting on.
    iterator.iter_ixes = iter(())
    while iterator.is_alive():
        try:
            iterator.output_queue.get(timeout=0.05)
        except Empty:
            continue
