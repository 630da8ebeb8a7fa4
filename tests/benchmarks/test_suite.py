"""The suite's stages: what is run, how it deals with what goes wrong, and what is kept."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import tyro

from benchmarks.harness.process import Ended
from benchmarks.suite import __main__ as gpu_suite
from benchmarks.suite import stages
from benchmarks.suite.__main__ import Arguments
from benchmarks.suite.findings import LARGEST, Findings, merged, pack
from benchmarks.suite.runner import Course, Runner
from benchmarks.suite.stages import HERE, Section
from fastpeer.errors import UserError

ALL = [(stage, section) for stage, sections in stages.STAGES.items() for section in sections]
BLANKS = {
    "json": "report.json",
    "budget": "60",
    "work": "work",
    "images": "images.tar",
    "reference": "reference",
}


def section(name, code, tmp_path, seconds=30.0, **more):
    """A section that runs some Python, which finds the file of its report in sys.argv[1]."""
    script = tmp_path / f"{name}.py"
    script.write_text(code, "utf-8")
    return Section(name, (str(script), "{json}"), ("{json}",), seconds, **more)


REPORT = (
    "import json, pathlib, sys\n"
    "report = {'script': 'any', 'records': [{'unit': 's'}], 'missing': [], 'notes': {}}\n"
    "pathlib.Path(sys.argv[1]).write_text(json.dumps(report))\n"
)
PLOT = REPORT + "pathlib.Path(sys.argv[1]).with_suffix('.png').write_bytes(b'picture')\n"


class Stage:
    """Runs sections in folders of a test."""

    def __init__(self, tmp_path, seconds=60.0, given=None):
        self.out, self.work = tmp_path / "out", tmp_path / "work"
        gpu_suite.prepare_folders(self.out, self.work, "")
        self.findings = Findings(self.out, self.work, {"facts": {"device": "some device"}})
        self.runner = Runner(
            Course(
                short=False, seconds=seconds, work=self.work, logs=self.out, given=given or {}, cuda=False,
                keep=lambda one, ended, report: self.findings.keep("first", one, ended, report),
            )
        )  # fmt: skip

    def run(self, *sections):
        self.runner.run(sections)
        return json.loads((self.out / "suite.json").read_text("utf-8"))["sections"]


@pytest.fixture(autouse=True)
def _caches_stay_where_they_are(monkeypatch):
    for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))


def test_a_failing_section_costs_itself_alone(tmp_path):
    found = Stage(tmp_path).run(
        section("broken", "raise SystemExit('out of luck')", tmp_path), section("fine", REPORT, tmp_path)
    )
    assert found["broken"]["state"] == "failed"
    assert found["broken"]["headline"] == "exit status 1 out of luck"
    assert found["fine"]["state"] == "done"
    assert found["fine"]["report"]["records"] == [{"unit": "s"}]
    assert found["fine"]["facts"] == {"device": "some device"}


def test_after_a_vital_section_has_failed_nothing_else_is_run(tmp_path):
    found = Stage(tmp_path).run(
        section("vital", "raise SystemExit(1)", tmp_path, vital=True), section("late", REPORT, tmp_path)
    )
    assert found["late"]["state"] == "left out"
    assert found["late"]["headline"] == "after vital nothing else makes sense"


def test_a_vital_section_that_is_too_slow_costs_itself_alone(tmp_path):
    slow = section("vital", "import time; time.sleep(60)", tmp_path, seconds=1.0, vital=True)
    found = Stage(tmp_path).run(slow, section("late", REPORT, tmp_path))
    assert [found[name]["state"] for name in ("vital", "late")] == ["timed out", "done"]


def test_a_section_out_of_time_leaves_what_it_had(tmp_path):
    slow = section("slow", f"{REPORT}import time\ntime.sleep(60)", tmp_path, seconds=2.0)
    found = Stage(tmp_path).run(slow, section("next", REPORT, tmp_path))
    assert found["slow"]["state"] == "timed out"
    assert found["slow"]["headline"] == "1 records; ended after 2 s"
    assert found["next"]["state"] == "done"


def test_sections_without_time_left_are_named(tmp_path):
    found = Stage(tmp_path, seconds=5.0).run(section("late", REPORT, tmp_path))
    assert found["late"]["state"] == "left out"
    assert "no time left" in found["late"]["headline"]


def test_what_was_not_given_is_named(tmp_path):
    found = Stage(tmp_path).run(section("late", REPORT, tmp_path, needs=("images",)))
    assert found["late"]["headline"] == "needs --images"
    found = Stage(tmp_path, given={"images": "some.tar"}).run(
        section("late", REPORT, tmp_path, needs=("images",))
    )
    assert found["late"]["state"] == "done"


def test_sections_run_beside_others_until_one_joins(tmp_path):
    place = tmp_path / "events"
    note = f"import time\ndef note(what): open({str(place)!r}, 'a').write(what + ' ')\n"
    found = Stage(tmp_path).run(
        section("beside", f"{note}note('begun')\ntime.sleep(4)\nnote('over')", tmp_path, beside=True),
        section("too", f"{note}time.sleep(1)\nnote('too')", tmp_path, beside=True),
        section("meanwhile", f"{note}time.sleep(2)\nnote('meanwhile')", tmp_path),
        section("alone", f"{note}note('alone')", tmp_path, joins=True),
    )
    assert place.read_text() == "begun too meanwhile over alone "
    assert {one["state"] for one in found.values()} == {"done"}


def test_a_stage_that_is_stopped_keeps_what_it_had_and_ends_its_processes(tmp_path):
    """As a whole process, as it is stopped on a machine whose time is over."""
    slow = f"{REPORT}open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid()))\n"
    slow += "print('begun', flush=True)\n__import__('time').sleep(60)"
    section("slow", slow, tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(HERE.parent)!r})\n"
        "from benchmarks.suite import __main__ as gpu_suite\nfrom benchmarks.suite.stages import Section\n"
        f"one = Section('slow', ({str(tmp_path / 'slow.py')!r}, '{{json}}'), ('{{json}}',), 50.0)\n"
        "gpu_suite.STAGES = {'first': [one]}\n"
        f"gpu_suite.main(gpu_suite.Arguments(stage='first', out=gpu_suite.Path({str(tmp_path / 'out')!r}),"
        f" work=gpu_suite.Path({str(tmp_path / 'work')!r}), device='cpu'))\n"
    )
    suite = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = tmp_path / "pid"
    for _ in range(600):
        if pid.exists() and pid.read_text():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    suite.send_signal(signal.SIGTERM)
    assert "stopped; what was found by then is kept" in suite.communicate(timeout=30)[0]
    assert suite.returncode == 130
    found = json.loads((tmp_path / "out" / "suite.json").read_text("utf-8"))["sections"]["slow"]
    assert (found["state"], found["report"]["records"]) == ("stopped", [{"unit": "s"}])
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_later_stages_keep_what_earlier_ones_found(tmp_path):
    Stage(tmp_path).run(section("one", REPORT, tmp_path))
    found = Stage(tmp_path).run(section("two", REPORT, tmp_path))
    assert set(found) == {"one", "two"}
    again = Stage(tmp_path).run(section("one", "raise SystemExit(1)", tmp_path))
    assert again["one"]["state"] == "done"
    assert {"suite.json", "suite.log"} <= {one.name for one in (tmp_path / "out").iterdir()}


def test_of_two_results_the_later_one_holds_unless_it_found_nothing():
    done, again = {"report": {"script": "a"}, "state": "done"}, {"report": {"script": "b"}, "state": "done"}
    lost = {"report": None, "state": "failed"}
    assert merged({"x": done}, {"x": again}) == {"x": again}
    assert merged({"x": done}, {"x": lost}) == {"x": done}
    assert merged({"x": lost}, {"y": done}) == {"x": lost, "y": done}
    partly = {"report": {"script": "c"}, "state": "running"}
    assert merged({"x": done}, {"x": partly}) == {"x": done}
    assert merged({"x": partly}, {"x": {**partly, "state": "timed out"}})["x"]["state"] == "timed out"


def test_plots_and_the_records_of_runs_come_along_but_no_weights(tmp_path):
    stage = Stage(tmp_path)
    run = stage.work / "runs" / "trained"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("metrics.jsonl", "config.toml", "student.safetensors"):
        (run / name).write_text("content")
    stage.run(section("one", PLOT, tmp_path))
    with tarfile.open(stage.out / "plots.tar.gz") as plots, tarfile.open(stage.out / "runs.tar.gz") as runs:
        assert plots.getnames() == ["one.png"]
        assert runs.getnames() == ["runs/trained/config.toml", "runs/trained/metrics.jsonl"]


def test_what_is_too_large_to_come_back_is_left_out(tmp_path):
    large = tmp_path / "large"
    large.write_bytes(os.urandom(LARGEST + 1000))
    pack(tmp_path / "archive.tar.gz", {"large": large})
    assert [one.name for one in tmp_path.iterdir()] == ["large"]


def test_few_files_come_back(tmp_path):
    stage = Stage(tmp_path)
    for file in ("runs/trained/config.toml", "cache/kernel.cubin", "cache/kernel.ttir"):
        (stage.work / file).parent.mkdir(parents=True, exist_ok=True)
        (stage.work / file).write_text("content")
    stage.run(section("one", PLOT, tmp_path), section("two", REPORT, tmp_path, beside=True))
    findings = Findings(stage.out, stage.work, {})
    assert findings.save_compiled_code(stage.work / "cache") == ""
    names = [one.name for one in stage.out.iterdir()]
    assert sorted(names) == [
        "beside.log", "cache.tar.gz", "plots.tar.gz", "runs.tar.gz", "suite.json", "suite.log",
    ]  # fmt: skip
    with tarfile.open(stage.out / "cache.tar.gz") as packed:
        assert packed.getnames() == ["cache", "cache/kernel.cubin"]


def test_compiled_code_that_is_too_much_is_said_and_the_former_not_kept(tmp_path):
    stage = Stage(tmp_path)
    cache = stage.work / "cache"
    cache.mkdir(parents=True)
    stage.out.mkdir(parents=True, exist_ok=True)
    (stage.out / "cache.tar.gz").write_bytes(b"former")
    (cache / "large").write_bytes(os.urandom(LARGEST + 1000))
    assert "left behind" in Findings(stage.out, stage.work, {}).save_compiled_code(cache)
    assert not (stage.out / "cache.tar.gz").exists()


@pytest.mark.parametrize(("stage", "one"), ALL, ids=[f"{stage}-{one.name}" for stage, one in ALL])
@pytest.mark.parametrize("short", [False, True])
def test_every_command_is_one_that_its_script_takes(stage, one, short):
    _, _, module, *words = one.command(short, BLANKS)
    if module in ("pytest", "benchmarks.suite.environment"):
        return
    tyro.cli(importlib.import_module(module).Arguments, args=words)
    assert not any("{" in word for word in words)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_a_stages_most_valuable_sections_fit_into_its_time(stage):
    sections = stages.STAGES[stage]
    assert len({one.name for one in sections}) == len(sections)
    alone = [one for one in sections if not one.beside]
    first, *rest = alone
    assert first.seconds + rest[0].least <= stages.SECONDS[stage]
    assert all(one.least <= one.seconds for one in sections)


def test_sections_leave_others_the_time_that_these_reserve(tmp_path):
    stage = Stage(tmp_path, seconds=40.0)
    slow = section("slow", "import time; time.sleep(30)", tmp_path, least=0.0)
    found = stage.run(slow, section("kept", REPORT, tmp_path, reserve=37.0, least=10.0))
    assert (found["slow"]["state"], found["kept"]["state"]) == ("timed out", "done")


def test_the_first_stage_begins_with_the_machine_and_measures_alone():
    names = [one.name for one in stages.FIRST]
    assert names[0] == "environment"
    throughput = stages.FIRST[names.index("throughput")]
    assert throughput.joins
    assert stages.FIRST[names.index("compile-ahead")].beside


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (Arguments(stage="speed", sections=("everything",)), "speed has no everything; use ablation, "),
        (Arguments(stage="first", folders=(Path("somewhere"),)), "the stage first takes no folders"),
        (
            Arguments(stage="first", images=Path("nowhere.tar")),
            "--images nowhere.tar: no such file or folder",
        ),
        (Arguments(stage="first", bundle=Path("nowhere")), "--bundle nowhere: no such folder"),
        (Arguments(stage="collect"), "collect needs --out"),
        (
            Arguments(stage="collect", out=Path("out"), folders=(Path("nowhere"),)),
            "nowhere: holds no suite.json",
        ),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        gpu_suite.main(arguments)
    assert not list(tmp_path.iterdir())


def test_a_bundle_gives_images_reference_and_compiled_code(tmp_path, monkeypatch):
    bundle = tmp_path / "bundle"
    (bundle / "images").mkdir(parents=True)
    (bundle / "reference").mkdir()
    (bundle / "images" / "cifar10.tar.xz").write_bytes(b"")
    pack(bundle / "cache.tar.gz", {"cache": bundle / "reference"})
    monkeypatch.setenv("FASTPEER_BUNDLE", str(bundle))
    found = gpu_suite.in_bundle(Arguments(stage="first"))
    assert {name: Path(path).name for name, path in found.items()} == {
        "images": "cifar10.tar.xz", "reference": "reference", "cache": "cache.tar.gz",
    }  # fmt: skip
    other = tmp_path / "other.tar"
    other.write_bytes(b"")
    assert gpu_suite.in_bundle(Arguments(stage="first", images=other))["images"] == str(other)
    gpu_suite.prepare_folders(tmp_path / "out", tmp_path / "work", found["cache"])
    assert (tmp_path / "work" / "cache").is_dir()


def test_folders_of_several_calls_are_put_together(tmp_path, capsys):
    for name in ("a", "b"):
        stage = Stage(tmp_path / name)
        stage.run(section(name, PLOT, tmp_path))
    folders = (tmp_path / "a" / "out", tmp_path / "b" / "out")
    gpu_suite.main(Arguments(stage="collect", out=tmp_path / "all", folders=folders))
    found = json.loads((tmp_path / "all" / "suite.json").read_text("utf-8"))["sections"]
    assert set(found) == {"a", "b"}
    assert {"a.png", "b.png", "suite.log"} <= {one.name for one in (tmp_path / "all").iterdir()}
    assert "2 sections" in capsys.readouterr().out


def test_it_says_what_comes_next(tmp_path):
    findings = Findings(tmp_path, tmp_path / "work", {})
    for name, state in (("ablation", "done"), ("wide", "left out"), ("tiny", "timed out")):
        findings.keep("speed", Section(name, ("a.py",), (), 1.0), Ended(state, 0.0), tmp_path / "none.json")
    lines = gpu_suite.next_commands(findings, Arguments(stage="speed", out=Path("results")))
    assert lines == [
        "left: python -m benchmarks.suite speed --out results --sections wide tiny",
        "next: python -m benchmarks.suite train --out results",
    ]
    assert gpu_suite.next_commands(findings, Arguments(stage="rest")) == []


def test_a_real_section_runs_in_its_short_form(tmp_path, monkeypatch):
    # Several threads each are many times slower where other programs want the same cores.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    gpu_suite.main(
        Arguments(
            stage="first", device="cpu", out=tmp_path / "out", work=tmp_path / "work", sections=("checks",)
        )
    )
    found = json.loads((tmp_path / "out" / "suite.json").read_text("utf-8"))["sections"]
    assert found["checks"]["state"] == "done", found
    assert found["checks"]["headline"].endswith("passed")
    assert found["checks"]["settings"]["short"] is True


@pytest.mark.soak
@pytest.mark.parametrize("stage", stages.STAGES)
def test_every_stage_runs_in_its_short_form(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    gpu_suite.main(
        Arguments(stage=stage, device="cpu", out=tmp_path / "out", work=tmp_path / "work", seconds=1200.0)
    )
    found = json.loads((tmp_path / "out" / "suite.json").read_text("utf-8"))["sections"]
    states = {name: one["headline"] for name, one in found.items() if one["state"] != "done"}
    assert all(reason.startswith(("needs --", "after images")) for reason in states.values()), states
