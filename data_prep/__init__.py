"""Turns a source of images into FFCV files: `prepare(PrepOptions(dataset="digits", out=Path("digits")))`.

Read `prepare.py` for the whole course; `source.py` says what a data set has to offer, and
`digits.py`, `cifar.py`, `tiny.py` and `folder.py` each read one kind. Importing this package is cheap:
NumPy, Pillow and FFCV come in only once they are needed.
"""

from __future__ import annotations

from fastpeer.data_prep.options import DATASETS, PrepOptions, PrepSummary, Progress
from fastpeer.data_prep.prepare import prepare

__all__ = ["DATASETS", "PrepOptions", "PrepSummary", "Progress", "prepare"]
