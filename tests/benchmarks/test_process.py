"""Sections against the clock."""

import sys

from harness.process import run_limited


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
