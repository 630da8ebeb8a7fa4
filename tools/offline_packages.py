"""Copies what fastpeer needs and a machine without network lacks, out of the environment that runs this.

python tools/offline_packages.py TARGET --installed FILE --python 3.12

FILE lists what is installed there, a package a line as `pip list` or `pip freeze` prints them. Pure Python is
copied with its metadata, FFCV with its extension; other compiled packages have to be there, and are named.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ASSUMED = """
    torch triton numpy scipy scikit-learn pillow numba llvmlite opencv-python-headless tensorboard safetensors
    rich setuptools packaging typing-extensions requests tqdm psutil attrs pandas protobuf grpcio
    jinja2 markupsafe
"""
"""What is there if nothing else is said: PyTorch, and what else has compiled parts or comes with it."""
SAME = {"opencv-python": "opencv-python-headless"}
"""Packages of another name that hold the same modules."""
NOT_CARRIED = {"..", "__pycache__", "direct_url.json", "examples", "tests"}
"""Files and folders of packages that are not needed there: scripts name this environment's Python."""
COMPILED_IN = ("ffcv",)
"""Compiled packages that are carried all the same."""


def main() -> None:
    """Copy, and name what is carried and what has to be there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("--installed", type=Path)
    parser.add_argument("--python", default="3.12")
    arguments = parser.parse_args()
    installed = names_in(arguments.installed.read_text("utf-8") if arguments.installed else ASSUMED)
    lacking = [one for one in closure("fastpeer", arguments.python, installed) if one not in installed]
    carried = [name for name in lacking if name in COMPILED_IN or is_pure(name)]
    for name in carried:
        copy(metadata.distribution(name), arguments.target)
    copy_metadata("fastpeer", arguments.target)
    print("carried:", ", ".join(f"{name} {metadata.version(name)}" for name in carried) or "nothing")
    if missing := sorted(set(lacking) - set(carried)):
        print(f"has compiled parts and must be there: {', '.join(missing)}")
        if arguments.installed:
            sys.exit(f"{arguments.installed} lacks {', '.join(missing)}")


def names_in(text: str) -> set[str]:
    """Return the packages that a list names: one a line, with a version or not, or several without."""
    found = set()
    for line in text.splitlines():
        words = re.split(r"[\s,]+", re.sub(r"[=<>!~@;#(].*", "", line).strip())
        # `pip list` puts the version in a second column.
        words = words[:1] if len(words) == 2 and re.match(r"\d", words[1]) else words
        found |= {known_as(word) for word in words if re.fullmatch(r"[A-Za-z0-9._-]+", word)}
    return found


def known_as(name: str) -> str:
    """Return the one name by which a package is spoken of here."""
    canonical = canonicalize_name(name)
    return SAME.get(canonical, canonical)


def closure(package: str, python: str, installed: set[str]) -> list[str]:
    """Return what a package needs, directly or not; what is installed there has what it needs."""
    found: dict[str, None] = {}
    pending = list(needs(package, python))
    while pending:
        name = pending.pop(0)
        if name not in found:
            found[name] = None
            pending += [] if name in installed else needs(name, python)
    return list(found)


def needs(package: str, python: str) -> Iterator[str]:
    """Yield what a package asks for on Linux under some Python."""
    there = {
        "python_version": python, "python_full_version": f"{python}.0", "platform_system": "Linux",
        "sys_platform": "linux", "extra": "",
    }  # fmt: skip
    for text in metadata.requires(package) or () if is_here(package) else ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate(there):
            yield known_as(requirement.name)


def is_here(name: str) -> bool:
    """Tell whether a package is installed here; another name of `SAME` is not looked for."""
    if name in SAME.values():
        return False
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        sys.exit(f"{name} is not installed here: run make demo or make test first")
    return True


def is_pure(name: str) -> bool:
    """Tell whether a package is Python alone, and so serves any version of it."""
    wheel = (metadata.distribution(name).read_text("WHEEL") or "") if is_here(name) else ""
    return "Root-Is-Purelib: true" in wheel


def copy(distribution: metadata.Distribution, target: Path) -> None:
    """Copy a package's files with its metadata."""
    for file in distribution.files or ():
        source = Path(str(distribution.locate_file(file)))
        if NOT_CARRIED & set(file.parts):
            continue
        place = target / str(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)


def copy_metadata(name: str, target: Path) -> None:
    """Copy the metadata of the project itself, whose code is found in the tree."""
    distribution = metadata.distribution(name)
    place = target / f"{name}-{distribution.version}.dist-info"
    place.mkdir(parents=True, exist_ok=True)
    for file in ("METADATA", "entry_points.txt"):
        (place / file).write_text(distribution.read_text(file) or "", "utf-8")


if __name__ == "__main__":
    main()
