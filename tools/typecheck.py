"""Runs mypy over the package as it is installed.

`kernels/` and `data_prep/` lie beside `fastpeer/` but are imported from within it, which mypy cannot
see in the source tree: it is shown a folder of links with the installed layout instead.
"""

import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Lay out the links, run mypy, return its exit code."""
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "fastpeer"
        package.mkdir()
        for entry in (*(root / "fastpeer").iterdir(), root / "kernels", root / "data_prep"):
            (package / entry.name).symlink_to(entry)
        command = [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(root / "pyproject.toml"),
            "-p",
            "fastpeer",
        ]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
