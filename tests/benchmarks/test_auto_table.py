"""The table that `auto` goes by, out of an ablation's results."""

import json

import pytest

from benchmarks.speed import auto_table
from benchmarks.speed.auto_table import Arguments, gains_of
from fastpeer.errors import UserError
from fastpeer.step.measured import Device, Workload, read_gains

FACTS = {"device": "NVIDIA H200", "cpu": "some processor", "cuda": "13.0", "capability": "9.0",
         "commit": "0123456789abcdef", "date": "2026-12-01T10:00:00+00:00"}  # fmt: skip
LABELS = {"model": "resnet18", "dataset": "tiny", "batch": 128}


def report(*records, facts=FACTS):
    written = [
        {"name": name, "value": value, "unit": unit, "labels": LABELS} for name, value, unit in records
    ]
    return {"script": "ablation", "facts": facts, "settings": {"precision": "bf16"}, "records": written}


def test_what_a_part_brings_to_the_full_step_counts_before_what_it_brought_when_added():
    found = {
        one.part: one.ratio
        for one in gains_of(
            report(
                ("released step, fp32", 1.0, "times the one above"),
                ("+ fold", 1.5, "times the one above"),
                ("+ merge", 1.25, "times the one above"),
                ("fold", 1.2, "times without it"),
                ("streams", 0.97, "times without it"),
            )
        )
    }
    assert found == {"fold": 1.2, "merge": 1.25, "streams": 0.97}


def test_a_row_knows_what_was_measured():
    (gain,) = gains_of(report(("fold", 1.23456789, "times without it")))
    assert gain.device == Device(kind="cuda", name="NVIDIA H200", capability="9.0")
    assert gain.workload == Workload(network="resnet18", size=64, batch=128, precision="bf16")
    assert (gain.ratio, gain.commit, gain.date) == (1.2346, "0123456789ab", "2026-12-01")
    on_cpu = {**FACTS, "device": "some processor", "cuda": None, "capability": None}
    (gain,) = gains_of(report(("fold", 1.0, "times without it"), facts=on_cpu))
    assert gain.device == Device(kind="cpu", name="some processor")


def test_other_methods_steps_say_nothing_of_the_table():
    own = report(("compile", 1.1, "times without it"))
    own["records"][0]["labels"] = {**LABELS, "method": "ard"}
    assert list(gains_of(own)) == []


def test_reports_and_suites_are_taken_in_and_rows_replaced(tmp_path):
    table, single, suite = (tmp_path / name for name in ("table.json", "ablation.json", "suite.json"))
    single.write_text(
        json.dumps(report(("fold", 1.1, "times without it"), ("merge", 1.3, "times without it")))
    )
    later = report(("fold", 1.4, "times without it"))
    sections = {
        "ablation": {"report": later},
        "wide": {"report": {"script": "throughput"}},
        "tiny": {"report": None},
    }
    suite.write_text(json.dumps({"sections": sections}))
    for path in (single, suite):
        auto_table.main(Arguments(reports=(path,), table=table))
    assert {one.part: one.ratio for one in read_gains(table.read_text())} == {"fold": 1.4, "merge": 1.3}


@pytest.mark.parametrize("content", ["{", "[]", '{"script": "throughput"}', '{"sections": {}}'])
def test_what_holds_no_ablation_is_refused_and_the_table_stays(tmp_path, content):
    other = tmp_path / "other.json"
    other.write_text(content)
    with pytest.raises(UserError, match="no report"):
        auto_table.main(Arguments(reports=(other,), table=tmp_path / "table.json"))
    assert not (tmp_path / "table.json").exists()
