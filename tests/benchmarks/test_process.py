"""Sections against the clock."""

import sys
import time
from pathlib import Path

from benchmarks.harness.process import run_limited

ROOT = Path(__file__).parents[2]


def run(tmp_path, code, seconds=30.0):
    return run_limited([sys.executable, "-c", code], tmp_path, seconds, tmp_path / "log")


def test_output_and_state_are_kept(tmp_path):
    ended = run(tmp_path, "print('one')")
    assert (ended.state, ended.output, ended.reason) == ("done", "one", "")
    again = run(tmp_path, "import sys; print('two', file=sys.stderr); sys.exit(3)")
    assert (again.state, again.output, again.reason) == ("failed", "two", "exit status 3")
    assert "one" in (tmp_path / "log").read_text("utf-8")


def test_what_takes_too_long_is_ended_with_its_children(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20); open(\"late\", \"w\")'])\n"
        "print('begun', flush=True)\n"
        "time.sleep(20)"
    )
    ended = run(tmp_path, code, seconds=1.5)
    assert (ended.state, ended.reason, ended.output) == ("timed out", "ended after 2 s", "begun")
    assert ended.seconds < 15


def test_what_it_has_started_in_the_same_way_is_ended_too(tmp_path):
    code = (
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from benchmarks.harness.process import run_limited\n"
        'inner = \'import os, time; open("pid", "w").write(str(os.getpid())); time.sleep(60)\'\n'
        "run_limited([sys.executable, '-c', inner], Path.cwd(), 60.0, Path('inner.log'))"
    )
    assert run(tmp_path, code, seconds=3.0).state == "timed out"
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
