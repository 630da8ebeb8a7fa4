"""Turns a source of images into FFCV files: `prepare(PrepOptions(dataset="digits", out=Path("digits")))`.

Read `prepare.py` for the whole course. `sources/` reads the data sets, one module for each; `archive.py`
opens the folder, zip or tar they lie in, `images.py` decodes their images; `writer/` writes and checks the
files in a process of its own. Importing this package is cheap: NumPy, Pillow and FFCV come in only once they
are needed.
"""

from __future__ import annotations

from fastpeer.data_prep.options import DATASETS, PrepOptions, PrepSummary, Progress
from fastpeer.data_prep.prepare import prepare

__all__ = ["DATASETS", "PrepOptions", "PrepSummary", "Progress", "prepare"]
