"""Versions of packages, also of those that lie on the path without having been installed."""

from importlib import metadata

import fastpeer


def version_of(package: str) -> str | None:
    """Return a package's version; None where it came without metadata, as a copied folder does."""
    if package == "fastpeer":
        return fastpeer.__version__
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
