"""Official archives, fetched with a checksum; a broken download continues where it stopped."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fastpeer.data_prep.options import Progress
from fastpeer.errors import UserError, one_line

if TYPE_CHECKING:
    from requests import Response

ATTEMPTS = 3
TIMEOUT_S = 30
BLOCK = 1 << 13  # what of a block has arrived when the connection breaks is lost


@dataclass(frozen=True)
class Remote:
    """An archive on a server, reached over https alone.

    Attributes:
        url: its address.
        known_hash: its checksum, as `md5:…` or `sha256:…`.
        local: on this machine, for tests: without https.
    """

    url: str
    known_hash: str
    local: bool = False

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]


OFFICIAL: Mapping[str, Remote] = MappingProxyType(
    {
        "cifar10": Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "md5:c58f30108f718f92721af3b95e74349a"
        ),
        "cifar100": Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "md5:eb9058c3a382ffc7106e4002c42a8d85"
        ),
        "tiny": Remote(
            "https://cs231n.stanford.edu/tiny-imagenet-200.zip", "md5:90528d7ca1a48142e341f4ef8d21d0de"
        ),
    }
)


def fetch(remote: Remote, folder: Path | None, progress: Progress) -> Path:
    """Return the archive's path in `folder`, downloading it unless a good copy lies there.

    Raises:
        UserError: the server cannot be reached, or not over https, the connection broke, or the checksum is
            wrong.
    """
    import pooch

    if not remote.local:
        _require_https(remote.url, remote.url)

    pooch.get_logger().setLevel("WARNING")
    target = (folder or pooch.os_cache("fastpeer")).resolve()
    resume = ResumingDownloader(target / f"{remote.file_name}.part", progress, remote.local)
    try:
        path = pooch.retrieve(
            remote.url, remote.known_hash, fname=remote.file_name, path=target, downloader=resume
        )
    except ValueError as error:
        raise UserError(
            f"{remote.url} arrived with a wrong checksum and was deleted: try again, "
            "or download it elsewhere and pass --source FILE"
        ) from error
    except OSError as error:
        raise UserError(f"cannot save {remote.file_name} in {target}: {one_line(error)}") from error
    return Path(path)


class ResumingDownloader:
    """A downloader for pooch that keeps what has arrived in `part` until the file is complete.

    Args:
        part: the file that collects the bytes; a later run continues from its end.
        progress: called with "download", the bytes there and the bytes in all (0 when unknown).
        local: see `Remote`.
    """

    def __init__(self, part: Path, progress: Progress, local: bool = False) -> None:
        self.part = part
        self.local = local
        self.progress = progress

    def __call__(self, url: str, output_file: str, pooch: Any, check_only: bool = False) -> None:
        """Download `url` to `output_file`; the other arguments belong to pooch's protocol.

        Raises:
            UserError: no answer, an answer that is no file, or a connection that broke again and again.
        """
        for _ in range(ATTEMPTS):
            if self._attempt(url):
                os.replace(self.part, output_file)
                return
        raise UserError(
            f"the connection to {url} broke after {self._have()} bytes: "
            "run the same command again to go on from there"
        )

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _attempt(self, url: str) -> bool:
        """Ask for the missing bytes once; True when the file is complete."""
        have = self._have()
        with _request(url, have) as response:
            if not self.local:
                for answer in (*response.history, response):
                    _require_https(answer.url, url)
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return self._beyond_end(response, have)
            if not response.ok:
                raise UserError(
                    f"{url} answered {response.status_code} {response.reason}: "
                    "download it elsewhere and pass --source FILE"
                )
            return self._receive(response, have if _continues(response, have) else 0)

    def _beyond_end(self, response: Response, have: int) -> bool:
        """Settle a refused range: all was there already, or the part is of another file."""
        if response.headers.get("Content-Range", "").endswith(f"/{have}"):
            return True
        self.part.unlink()
        return False

    def _receive(self, response: Response, start: int) -> bool:
        """Write the answer's body from byte `start` on; True when all of it came."""
        import requests

        have, length = start, response.headers.get("Content-Length")
        total = start + int(length) if length else 0
        with self.part.open("ab") as file:
            file.truncate(start)
            try:
                for block in response.iter_content(BLOCK):
                    have += file.write(block)
                    self.progress("download", have, total)
            except requests.RequestException:
                return False
        return not total or have == total


def _require_https(url: str, asked: str) -> None:
    """Refuse an address, perhaps one that a server led to: anyone on the way could change the file."""
    if not url.startswith("https://"):
        led = "" if url == asked else f"{asked} leads to "
        raise UserError(f"{led}{url}, which is not https: download it elsewhere and pass --source FILE")


def _request(url: str, start: int) -> Response:
    """Ask for the file from byte `start` on, as it is: compressed anew, bytes could not be counted."""
    import requests

    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        return requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S)
    except requests.RequestException as error:
        raise UserError(f"cannot reach {url}: download it elsewhere and pass --source FILE") from error


def _continues(response: Response, have: int) -> bool:
    """Tell whether the answer begins at byte `have`, and not again at 0."""
    partial = response.status_code == HTTPStatus.PARTIAL_CONTENT
    return partial and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
