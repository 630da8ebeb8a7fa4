"""What a checkpoint's path stands for, with symbolic links and without."""

import os
import re
import shutil
from pathlib import Path

from fastpeer.files import flush

LONGEST = 200
"""Bytes of a text file that may be a link: weight files are far longer."""


def checkpoint_folder(path: Path) -> Path:
    """Return the folder that a checkpoint's path stands for; the path itself where that is none.

    The path is a symbolic link to the folder; or, where links cannot be made, a text file that holds the
    link's target; or the folder itself, in a copy of a run that resolved the links.
    """
    if not path.name:
        return path
    # A folder cannot be replaced by a link in one moment: until it is, the complete new link counts.
    return _linked_folder(path if _is_link(path) else _next_link(path)) or path


def through_links(path: Path) -> Path:
    """Return the path of a checkpoint, or of a file in it, with text files for links followed."""
    for link in (path, path.parent):
        folder = checkpoint_folder(link)
        if folder != link:
            return folder / path.relative_to(link)
    return path


def student_weights(path: Path) -> Path | None:
    """Return the student's weights in a checkpoint, or the file itself; None if there is neither."""
    found = through_links(path)
    file = found / "student.safetensors" if found.is_dir() else found
    return file if file.is_file() else None


def link_checkpoint(path: Path, target: Path) -> None:
    """Let a checkpoint's path stand for another folder; after a kill it stands for that or the former one.

    Args:
        path: the checkpoint's path: a link, a text file, a folder, or nothing yet.
        target: the folder, in `.store` beside `path`; complete and on the disk.

    Raises:
        OSError: it cannot be written; the path stands for what it did.
    """
    new = _next_link(path)
    if not _is_link(path) and _linked_folder(new):
        # A process was killed while it replaced a folder: what counts must not be removed.
        _put_link(new, path)
    _remove(new)
    _write_link(new, target.relative_to(path.parent))
    _put_link(new, path)
    flush(path.parent)


def _next_link(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _is_link(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def _linked_folder(link: Path) -> Path | None:
    """Return the folder that a link, a text file for a link, or a folder in place of a link stands for."""
    if not link.is_file():
        return link if link.is_dir() else None
    with link.open("rb") as file:
        text = file.read(LONGEST).decode(errors="replace").strip()
    # Unpacked by a program that makes no links, a link is a text file too.
    folder = link.parent / text
    return folder if re.fullmatch(r"\.store/\w[\w-]*", text) and folder.is_dir() else None


def _write_link(link: Path, target: Path) -> None:
    try:
        link.symlink_to(target)
    except OSError:
        # Network drives and mounted buckets may have no links. Whatever else is wrong is wrong here too.
        link.write_text(f"{target.as_posix()}\n", "utf-8")
        flush(link)


def _put_link(new: Path, path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # rename(2) does not replace a folder. In the store the next checkpoint of this name removes it.
        former = path.parent / ".store" / f"{path.name}-0-copied"
        _remove(former)
        os.rename(path, former)
    # rename(2) replaces the old link atomically; a link cannot be changed in place.
    os.replace(new, path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
