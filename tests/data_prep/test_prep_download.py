"""Downloads from a server on this machine that breaks off, or cannot resume."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prep_files import cifar10_files, write_tar

from fastpeer.data_prep import PrepOptions, download, prepare
from fastpeer.data_prep.download import ATTEMPTS, BLOCK, OFFICIAL, Remote, fetch
from fastpeer.errors import UserError

CONTENT = bytes(range(256)) * 4000
GOOD = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


class Server(ThreadingHTTPServer):
    """Serves `content`; sends `limits` bytes of the first answers only, then everything."""

    content = CONTENT
    ranges = True
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.limits: list[int] = []
        self.starts: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and self.server.ranges else 0
        self.server.starts.append(start)
        body, size = self.server.content[start:], len(self.server.content)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else self.server.status)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        limit = self.server.limits.pop(0) if self.server.limits else len(body)
        self.wfile.write(body[:limit])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def get(server: Server, folder: Path, known_hash: str = GOOD) -> list[tuple[str, int, int]]:
    steps: list[tuple[str, int, int]] = []
    path = fetch(Remote(server.url, known_hash, local=True), folder, lambda *step: steps.append(step))
    assert path == folder / "file.bin"
    assert path.read_bytes() == server.content
    assert [entry.name for entry in folder.iterdir()] == ["file.bin"]
    return steps


def test_plain_download_reports_and_is_kept(server: Server, tmp_path: Path) -> None:
    steps = get(server, tmp_path / "new")
    assert steps[-1] == ("download", len(CONTENT), len(CONTENT))
    assert get(server, tmp_path / "new") == []
    assert server.starts == [0]


def test_broken_connection_goes_on_at_once(server: Server, tmp_path: Path) -> None:
    server.limits = [32 * BLOCK, 8 * BLOCK + 5]
    steps = get(server, tmp_path)
    assert server.starts == [0, 32 * BLOCK, 40 * BLOCK]
    done = [step[1] for step in steps]
    assert done == sorted(done)


def test_later_run_goes_on(server: Server, tmp_path: Path) -> None:
    server.limits = [10 * BLOCK] * ATTEMPTS
    with pytest.raises(UserError, match=f"broke after {30 * BLOCK} bytes: run the same command again"):
        get(server, tmp_path)
    get(server, tmp_path)
    assert server.starts == [0, 10 * BLOCK, 20 * BLOCK, 30 * BLOCK]


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.limits = [300_000]
    get(server, tmp_path)
    assert server.starts == [0, 0]


def test_complete_part_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    get(server, tmp_path)


def test_part_that_is_too_long_is_dropped(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    get(server, tmp_path)


def test_wrong_checksum_deletes_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"file\.bin arrived with a wrong checksum and was deleted"):
        get(server, tmp_path, "md5:" + "0" * 32)
    assert list(tmp_path.iterdir()) == []


def test_bad_copy_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"bad")
    get(server, tmp_path)


def test_server_error(server: Server, tmp_path: Path) -> None:
    server.status = 503
    with pytest.raises(UserError, match=r"503 .*--source FILE"):
        get(server, tmp_path)


def test_nothing_is_fetched_without_https(server: Server, tmp_path: Path) -> None:
    assert all(remote.url.startswith("https://") for remote in OFFICIAL.values())
    with pytest.raises(UserError, match="which is not https: download it elsewhere"):
        fetch(Remote(server.url, GOOD), tmp_path, lambda *step: None)
    assert server.starts == []
    # Nor where an answer has come from elsewhere than from where it was asked for.
    secure = "https" + server.url.removeprefix("http")
    with pytest.MonkeyPatch.context() as patch:
        ask = download._request
        patch.setattr(download, "_request", lambda url, start: ask(server.url, start))
        with pytest.raises(UserError, match=f"{secure} leads to {server.url}, which is not https"):
            fetch(Remote(secure, GOOD), tmp_path, lambda *step: None)
    assert list(tmp_path.iterdir()) == []


def test_offline(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/cifar-10-python.tar.gz"
        remotes = {"cifar10": Remote(url, GOOD, local=True)}
        options = PrepOptions(dataset="cifar10", out=tmp_path / "out", download_dir=tmp_path / "down")
        with pytest.raises(UserError, match=f"^cannot reach {re.escape(url)}: .* pass --source FILE$"):
            prepare(options, remotes=remotes)
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot save file\.bin"):
        get(server, tmp_path / "file" / "below")


def test_prepare_downloads_and_resizes(server: Server, tmp_path: Path) -> None:
    server.content = write_tar(tmp_path / "c.tar.gz", cifar10_files()).read_bytes()
    known_hash = f"md5:{hashlib.md5(server.content).hexdigest()}"
    out = tmp_path / "new" / "out"
    # 800 pixels: images that FFCV's smallest page does not hold.
    options = PrepOptions(dataset="cifar10", out=out, download_dir=tmp_path / "down", size=800)
    summary = prepare(options, remotes={"cifar10": Remote(server.url, known_hash, local=True)})
    assert summary.size == (800, 800)
    assert summary.counts == {"train": 20, "test": 4}
    manifest = (out / "dataset.json").read_text()
    assert '"kind": "download"' in manifest
    assert hashlib.sha256(server.content).hexdigest() in manifest
