"""A tree of files that is read in place: a folder, a zip, or a tar in memory."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from contextlib import closing
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, cast

from fastpeer.data_prep.unpacking import BoundedReader, most_unpacked, require_file_size, too_much
from fastpeer.errors import UserError, one_line
from fastpeer.files import file_sha256

MAX_DEPTH = 6
MAX_IN_MEMORY = 4 << 30  # bytes
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8")
"""Of JPEG, PNG and GIF."""
IGNORED_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
DAMAGE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    LZMAError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,  # raised by zipfile for an encrypted member
)


class FileTree(ABC):
    """Files under one root; hidden files and those that file managers leave behind do not count.

    Attributes:
        label: name of the folder or archive, for messages.
        kind: "folder" or "archive".
        sizes: bytes of each file by its name relative to the root, with "/" between the parts.
        folders: names of the folders that are known, empty ones included.
    """

    kind = "archive"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = path.name
        self.sizes: dict[str, int] = {}
        self.folders: set[str] = set()

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return a file's content; processes forked from this one may call it at the same time."""

    def pop(self, name: str) -> bytes:
        """Return a file's content, which is not read again and need not stay in memory."""
        return self.read(name)

    def digest(self) -> str:
        """Return the SHA-256 of the archive, or of a folder's sorted names and sizes."""
        return file_sha256(self.path)

    def add(self, name: str, size: int) -> bool:
        """Register a file unless its name is an ignored one; True when it counts."""
        parts = safe_parts(name, self.label)
        if not parts:
            raise UserError(f"{self.label} holds a file without a name: do not use this archive")
        if is_ignored(parts):
            return False
        whole = "/".join(parts)
        if whole in self.sizes:
            raise UserError(f"{self.label} holds {whole} twice: do not use this archive")
        self.sizes[whole] = size
        self.folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        return True

    def add_folder(self, name: str) -> None:
        """Register a folder, which may be empty."""
        parts = safe_parts(name, self.label)
        if parts and not is_ignored(parts):
            self.folders.add("/".join(parts))

    def below(self, folder: str) -> list[str]:
        """Names of all files in `folder` (which ends with "/" or is empty), sorted."""
        return sorted(name for name in self.sizes if name.startswith(folder))

    def folders_with(self, file: str) -> list[str]:
        """Folders that hold a file of this name, each with its "/" or empty, the shortest first."""
        found = [name for name in self.sizes if name.split("/")[-1] == file]
        return sorted((name[: -len(file)] for name in found), key=len)

    def children(self, folder: str) -> list[str]:
        """Names, without the path, of the folders directly in `folder`, sorted."""
        rest = (name[len(folder) :] for name in self.folders if name.startswith(folder))
        return sorted(name for name in rest if name and "/" not in name)


class FolderTree(FileTree):
    """A folder on disk; symbolic links are followed."""

    kind = "folder"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._scan("", 0)

    def read(self, name: str) -> bytes:
        """Read the file anew each time."""
        require_file_size(f"{self.label}/{name}", self.sizes[name])
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise UserError(
                f"cannot read {self.label}/{name} ({error.strerror}): fix it and run again"
            ) from error

    def digest(self) -> str:
        """Hash the sorted names and sizes, not the contents."""
        lines = (f"{name}\t{self.sizes[name]}\n" for name in sorted(self.sizes))
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def _scan(self, folder: str, depth: int) -> None:
        # The bound keeps a link to a parent folder, or a whole home folder, from being walked for ever.
        if depth > MAX_DEPTH:
            return
        try:
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    self._register(entry, f"{folder}{entry.name}", depth)
        except OSError as error:
            place = one_line(error.filename or folder)
            raise UserError(
                f"cannot read {place} ({error.strerror}): fix or remove it and run again"
            ) from error

    def _register(self, entry: os.DirEntry[str], name: str, depth: int) -> None:
        if is_ignored((entry.name,)):
            return
        if entry.is_dir():
            self.folders.add(name)
            self._scan(f"{name}/", depth + 1)
        elif stat.S_ISREG(entry.stat().st_mode):
            self.sizes[name] = entry.stat().st_size
        else:
            raise UserError(f"{self.label}/{name} is no regular file: remove it")


class ZipTree(FileTree):
    """A zip, of which single members are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._members: dict[str, zipfile.ZipInfo] = {}
        try:
            self._zip = zipfile.ZipFile(io.BufferedReader(_PositionalFile(path)))
        except DAMAGE_ERRORS as error:
            raise damaged(path.name, error) from error
        self._require_bounds(self._zip.infolist())
        # The descriptor stays open: forked workers read members through it.
        for member in self._zip.infolist():
            self._register(member)

    def read(self, name: str) -> bytes:
        """Unpack one member; of more bytes than it declares, no more than these."""
        require_file_size(f"{name} in {self.label}", self.sizes[name])
        try:
            return self._zip.read(self._members[name])
        except DAMAGE_ERRORS as error:
            raise damaged(f"{name} in {self.label}", error) from error

    def _require_bounds(self, members: list[zipfile.ZipInfo]) -> None:
        most = most_unpacked(self.path)
        if sum(member.file_size for member in members) > most:
            raise too_much(self.label, most)
        if sum(member.compress_size for member in members) > self.path.stat().st_size:
            raise UserError(f"{self.label} has members that overlap: do not use this archive")

    def _register(self, member: zipfile.ZipInfo) -> None:
        # Made on Windows, a member has no such kind.
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UserError(
                f"{member.filename} in {self.label} is a link or device, no plain file: do not use it"
            )
        # is_dir, which says the same, raises an IndexError for a member without a name before Python 3.12.
        if member.filename.endswith("/"):
            self.add_folder(member.filename)
        elif self.add(member.filename, member.file_size):
            self._members["/".join(safe_parts(member.filename, self.label))] = member


class TarTree(FileTree):
    """A tar, read whole into memory, since a compressed one cannot be entered in the middle."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._contents: dict[str, bytes] = {}
        self._total = 0
        try:
            with (
                closing(BoundedReader(path)) as unpacked,
                tarfile.open(fileobj=cast("IO[bytes]", unpacked), mode="r:") as tar,
            ):
                for member in tar:
                    self._register(tar, member)
                _require_end(tar)
        except RecursionError:
            raise damaged(path.name, ValueError("a header follows a header without end")) from None
        except DAMAGE_ERRORS as error:
            raise damaged(path.name, error) from error

    def read(self, name: str) -> bytes:
        """Return the member from memory."""
        return self._contents[name]

    def pop(self, name: str) -> bytes:
        """Remove the member from memory, where it would lie beside what is made of it."""
        return self._contents.pop(name)

    def _register(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        if member.isdir():
            self.add_folder(member.name)
        elif not member.isreg():
            raise UserError(
                f"{member.name} in {self.label} is a link or device, no plain file: do not use it"
            )
        elif self.add(member.name, member.size):
            require_file_size(f"{member.name} in {self.label}", member.size)
            self._total += member.size
            if self._total > MAX_IN_MEMORY:
                raise UserError(f"{self.label} is too large to read at once: unpack it and pass the folder")
            content = cast("io.BufferedReader", tar.extractfile(member)).read()
            self._contents["/".join(safe_parts(member.name, self.label))] = content


class _PositionalFile(io.RawIOBase):
    """A file whose position belongs to the process, so that forked processes can share the descriptor."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = os.fstat(self._file.fileno()).st_size
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: size}[whence]
        if start + offset < 0:
            raise OSError("seek before the start of the file")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = os.pread(self._file.fileno(), len(buffer), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_tree(path: Path) -> FileTree:
    """Open a folder or an archive, recognised by its content.

    Raises:
        UserError: there is no such file, or it is damaged, cut off, or neither zip nor tar.
    """
    if path.is_dir():
        return FolderTree(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UserError(
            f"cannot read {path.name} ({error.strerror}): check the path given as --source"
        ) from error
    if start.startswith(IMAGE_STARTS):
        raise UserError(
            f"{path.name} is an image: --source must be an archive, or a folder train/CLASS/...,"
            " test/CLASS/..."
        )
    return ZipTree(path) if start.startswith(b"PK") else TarTree(path)


def damaged(name: str, error: Exception) -> UserError:
    """Return the error for an archive or a member that cannot be read."""
    reason = one_line(error) or type(error).__name__
    return UserError(f"{name} is cut off, damaged, or no zip or tar archive ({reason}): fetch it again")


def safe_parts(name: str, label: str) -> tuple[str, ...]:
    """Split an archive member's name; UserError when it leads out of the archive's own folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", name):
        raise UserError(f"{name} in {label} leads out of its folder: do not use this archive")
    return path.parts


def is_ignored(parts: tuple[str, ...]) -> bool:
    """Tell whether a name is hidden or one that file managers leave behind."""
    return any(part.startswith(".") or part.lower() in IGNORED_NAMES for part in parts)


def _require_end(tar: tarfile.TarFile) -> None:
    # tarfile takes a missing or a damaged header for the end, and leaves the checksum behind it unread.
    file = cast("io.BufferedReader", tar.fileobj)
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise EOFError("the end is missing")
    while file.read(1 << 20):
        pass
