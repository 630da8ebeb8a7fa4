"""Records, their summary and their JSON."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.harness.display import Panel, bar_plot, beside, missing, short
from benchmarks.harness.record import Report, counted, record

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Settings:
    rounds: int = 3
    folder: Path = Path("somewhere")


def test_a_record_holds_median_and_percentiles():
    found = record("step", [5.0, 1.0, 2.0, 4.0, 3.0, 6.0], "s", batch=8)
    assert (found.value, found.p20, found.p80, found.n) == (3.5, 2.0, 5.0, 6)
    assert found.labels == {"batch": 8}


def test_what_is_counted_has_no_spread():
    found = counted("weights", 10, "B")
    assert (found.value, found.p20, found.p80, found.n) == (10, 10, 10, 1)


def test_a_report_is_written_with_its_circumstances(tmp_path):
    path = tmp_path / "deep" / "report.json"
    report = Report("script", Settings(), CPU, path)
    report.add(record("a", [1.0, 2.0], "s", batch=8))
    report.miss("b", "needs CUDA", batch=8)
    report.save()
    content = json.loads(path.read_text("utf-8"), parse_constant=pytest.fail)
    assert content["settings"] == {"rounds": 3, "folder": "somewhere"}
    assert content["records"][0] == {
        "name": "a", "value": 1.5, "p20": 1.2, "p80": 1.8, "n": 2, "unit": "s", "labels": {"batch": 8},
    }  # fmt: skip
    assert content["missing"] == [{"name": "b", "reason": "needs CUDA", "batch": 8}]
    wanted = {
        "device",
        "driver",
        "torch",
        "triton",
        "cuda",
        "cudnn",
        "python",
        "cpu",
        "threads",
        "commit",
        "dirty",
    }
    assert wanted <= set(content["facts"])
    assert [one.name for one in path.parent.iterdir()] == ["report.json"]


def test_a_report_without_a_file_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = Report("script", Settings(), CPU, None)
    report.save()
    assert not list(tmp_path.iterdir())


def test_records_are_found_by_unit_and_labels():
    report = Report("script", Settings(), CPU, None)
    report.add(
        record("a", [1.0], "s", batch=8),
        record("a", [2.0], "GiB", batch=8),
        record("a", [3.0], "s", batch=16),
    )
    (one,) = report.select("s", batch=8)
    assert one.value == 1.0
    assert beside(report, one, "GiB") == "2"
    assert beside(report, one, "W") == "–"


def test_what_is_missing_is_said_for_its_own_case():
    report = Report("script", Settings(), CPU, None)
    report.miss("graph", "needs CUDA", batch=8)
    assert missing(report, {"batch": 8}) == ["not measured: graph (needs CUDA)"]
    assert missing(report, {"batch": 16}) == []


def test_a_plot_is_drawn(tmp_path):
    bars = [record("slow", [1.0, 2.0, 3.0], "images/s"), record("fast", [20.0, 21.0, 30.0], "images/s")]
    bar_plot(tmp_path / "plot.png", "Title", [Panel("panel", bars, ("ceiling", 40.0)), Panel("empty", [])])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"), [(12345.6, "12,346"), (123.4, "123"), (12.345, "12.3"), (0.0123, "0.0123")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text
