"""Whatever ends a preparation half-way leaves no file, no process and no shared memory."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from prep_files import encode, image_files, pixels, write_files, write_zip
from prep_traces import shared_memory, writer_processes

from fastpeer.data_prep import PrepOptions, prepare
from fastpeer.data_prep.writer.launch import run_writer
from fastpeer.data_prep.writer.messages import Job
from fastpeer.errors import UserError

SCRIPT = """
import resource, signal, sys
from pathlib import Path
from fastpeer.data_prep import PrepOptions, prepare
from fastpeer.errors import UserError

# A shell starts what runs in its background deaf to SIGINT, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

def log(stage, done, total):
    print(stage, flush=True)

if int(sys.argv[2]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    prepare(PrepOptions(dataset="digits", out=Path(sys.argv[1]), size=256), log)
except UserError as error:
    print(error, flush=True)
    sys.exit(2)
"""


def start(out: Path, limit: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(out), str(limit)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("send", [pytest.param(os.kill, marks=pytest.mark.soak), os.killpg])
def test_ctrl_c(tmp_path: Path, send: Callable[[int, int], None]) -> None:
    process = start(tmp_path / "out")
    assert process.stdout is not None
    assert process.stdout.readline() == "write train\n"
    send(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert os.listdir(tmp_path) == []


def test_killed_parent_takes_the_writer_along(tmp_path: Path) -> None:
    before = shared_memory()
    process = start(tmp_path / "out")
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while writer_processes(str(tmp_path)) or not shared_memory() <= before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_command_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    words = ["prep", "--dataset", "digits", "--size", "256", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastpeer", *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial-*/train.beton")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "fastpeer: interrupted\n")
    assert os.listdir(tmp_path) == []


def test_what_killed_preparations_left_is_cleared(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photos", image_files(["a", "b"], 4))
    options = PrepOptions(dataset="folder", source=source, out=tmp_path / "out", workers=1)
    prepare(options)
    # Killed between two renames: what stood there is under another name. And one that is still running.
    (tmp_path / "out").rename(tmp_path / ".out.old-0123abcd")
    for name in (".out.partial-0123abcd", ".out.partial-running0", ".out.partial-mine"):
        (tmp_path / name).mkdir()
    running = os.open(tmp_path / ".out.partial-running0", os.O_RDONLY)
    fcntl.flock(running, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="already holds a data set: pass --force"):
        prepare(options)
    os.close(running)
    left = {".out.partial-mine", ".out.partial-running0", "out", "photos"}
    assert set(os.listdir(tmp_path)) == left


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("leader", [pytest.param(False, marks=pytest.mark.soak), True])
def test_killed_writer(tmp_path: Path, leader: bool) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        for child in Path("/proc").glob("[0-9]*"):
            if _is_writer(child, str(tmp_path), leader):
                os.kill(int(child.name), signal.SIGKILL)

    with pytest.raises(UserError, match=r"lack of memory.*--workers"):
        prepare(PrepOptions(dataset="digits", out=tmp_path / "out", size=256), kill)
    assert os.listdir(tmp_path) == []


@pytest.mark.soak
@pytest.mark.usefixtures("clean")
def test_file_too_large_for_the_disk(tmp_path: Path) -> None:
    process = start(tmp_path / "out", limit=5_000_000)
    stdout, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "the disk is full" in stdout.splitlines()[-1]
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A disk of 20 MB, or a skipped test where none can be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    return disk


@pytest.mark.usefixtures("clean")
def test_full_disk(small_disk: Path) -> None:
    try:
        with pytest.raises(UserError, match=r"disk is too full.* MB are free: free some room"):
            prepare(PrepOptions(dataset="digits", out=small_disk / "out", size=256))
        assert os.listdir(small_disk) == []

        def fill(stage: str, done: int, total: int) -> None:
            with suppress(OSError), (small_disk / "filler").open("wb") as file:
                file.write(bytes(20_000_000))

        # Enough room beforehand, until something else takes it.
        with pytest.raises(UserError, match="the disk is full"):
            prepare(PrepOptions(dataset="digits", out=small_disk / "out", workers=1), fill)
        assert os.listdir(small_disk) == ["filler"]
    finally:
        subprocess.run(["umount", str(small_disk)], check=True)


@pytest.mark.usefixtures("clean")
def test_broken_image_in_the_middle(tmp_path: Path) -> None:
    files = image_files(["a", "b"], 300, kind="JPEG")
    files["train/b/150.jpeg"] = encode(pixels(1), "JPEG")[:200]
    source = write_zip(tmp_path / "photos.zip", files)
    with pytest.raises(
        UserError, match=r"^photos\.zip/train/b/150\.jpeg is broken \(.*: remove or replace it$"
    ):
        prepare(PrepOptions(dataset="folder", source=source, out=tmp_path / "out"))
    assert os.listdir(tmp_path) == ["photos.zip"]


def test_unforeseen_error_is_told_with_its_traceback(tmp_path: Path) -> None:
    source = write_files(tmp_path / "photos", {"a": b""})
    job = Job(PrepOptions(dataset="no such reader", source=source, workers=1), tmp_path)
    with pytest.raises(RuntimeError, match=r"(?s)the writer ended.*Traceback.*KeyError: 'no such reader'"):
        run_writer(job, lambda *step: None)
    assert writer_processes(str(tmp_path)) == []


def _is_writer(process: Path, mark: str, leader: bool) -> bool:
    """Tell the writer (the leader of its group) or one of its workers."""
    try:
        command, folder = (process / "cmdline").read_text(), str((process / "cwd").readlink())
        leads = os.getpgid(int(process.name)) == int(process.name)
    except OSError:
        return False
    return "data_prep.writer.process" in command and mark in folder and leads == leader
