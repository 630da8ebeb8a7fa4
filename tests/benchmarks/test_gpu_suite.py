"""The whole suite in its short form, and how it deals with what goes wrong."""

import json
import sys

import gpu_suite
import pytest
import torch
from gpu_suite import Arguments, Suite, chosen
from sections import Section, cuda_sections

from fastpeer.errors import UserError

CPU = torch.device("cpu")


def suite_of(tmp_path, **changes):
    return Suite(tmp_path, Arguments(out=tmp_path, **changes), CPU)


def found_in(tmp_path):
    return json.loads((tmp_path / "suite.json").read_text("utf-8"))["sections"]


def test_the_short_form_runs_through(tmp_path, monkeypatch):
    # Several threads each are many times slower where other programs want the same cores.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    gpu_suite.main(Arguments(out=tmp_path, device="cpu", seconds=600.0))
    found = found_in(tmp_path)
    states = {name: section["state"] for name, section in found.items()}
    assert states == {**dict.fromkeys(found, "done"), "loader": "left out"}, found
    assert found["checks"]["headline"].endswith("passed")
    assert any(one["unit"] == "images/s" for one in found["throughput"]["report"]["records"])
    assert [one["name"] for one in found["ablation"]["report"]["missing"]] == ["+ graph"]
    assert {"throughput.png", "ablation.png", "suite.log"} <= {one.name for one in tmp_path.iterdir()}


def test_a_failing_section_costs_itself_alone(tmp_path):
    suite = suite_of(tmp_path)
    suite.run(Section("broken", ("no_such_module",), 30))
    suite.run(Section("fine", ("this",), 30))
    found = found_in(tmp_path)
    assert found["broken"]["state"] == "failed"
    assert "No module named no_such_module" in found["broken"]["headline"]
    assert found["fine"]["state"] == "done"


def test_a_section_out_of_time_leaves_what_it_had(tmp_path, monkeypatch):
    script = tmp_path / "slow.py"
    script.write_text(
        "import json, pathlib, sys, time\n"
        "report = {'script': 'slow', 'records': [{'unit': 's'}], 'missing': [], 'notes': {}}\n"
        "pathlib.Path(sys.argv[-1]).write_text(json.dumps(report))\n"
        "time.sleep(60)\n",
        "utf-8",
    )
    monkeypatch.setattr(Section, "command", lambda self, report: [sys.executable, str(script), str(report)])
    suite_of(tmp_path).run(Section("slow", ("slow.py",), 2))
    found = found_in(tmp_path)["slow"]
    assert found["state"] == "timed out"
    assert found["report"]["records"] == [{"unit": "s"}]
    assert found["headline"] == "1 records; ended after 2 s"


def test_sections_without_time_left_are_named(tmp_path):
    suite_of(tmp_path, seconds=1.0).run(Section("late", ("this",), 30))
    found = found_in(tmp_path)["late"]
    assert found["state"] == "left out"
    assert "no time left" in found["headline"]


def test_sections_are_chosen_by_name():
    assert [one.name for one in chosen(Arguments(sections=("ablation",)), CPU)] == ["ablation"]
    with pytest.raises(UserError, match="there is no everything; use checks, "):
        chosen(Arguments(sections=("everything",)), CPU)


def test_the_sections_for_a_gpu_begin_with_the_checks(tmp_path):
    sections = cuda_sections(tmp_path, tmp_path)
    assert [one.name for one in sections][:2] == ["checks", "tests"]
    command = next(one for one in sections if one.name == "throughput").command(tmp_path / "report.json")
    assert command[-2:] == ["--json", str(tmp_path / "report.json")]
    assert "--reference" in command
