"""Versions of packages, including those that are importable but not installed."""

from importlib import metadata

import fastpeer


def version_of(package: str) -> str | None:
    """Return a package's version; None if it has no metadata, for instance as a copied folder."""
    if package == "fastpeer":
        return fastpeer.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
