"""The program that measures tiles: what it asks for, and where its rows go."""

import json
from dataclasses import asdict

import pytest

from benchmarks.speed.tiles import Arguments, main, problems
from fastpeer.errors import UserError
from fastpeer.kernels.convolution_tiles import Problem, Row, Tile, read_rows

PROBLEM = Problem(3, 2, 16, 32, 32, 32, 4, "bfloat16", back=True)


@pytest.mark.soak
def test_every_layer_is_measured_forward_and_back():
    asked = [problem for _, problem in problems(Arguments(networks=("resnet8", "resnet8"), batches=(4,)))]
    # Three shapes of 3×3 at stride 1, and 3×3 and 1×1 at stride 2 twice.
    assert len(asked) == len(set(asked)) == 2 * (3 + 4)
    assert PROBLEM in asked


def test_rows_of_reports_go_into_a_table(tmp_path):
    rows = [Row("a GPU", PROBLEM, Tile(128, pixels, 4, 3), 1.0) for pixels in (64, 128)]
    report, table = tmp_path / "report.json", tmp_path / "folder" / "tiles.json"
    for written, content in zip(rows, ({}, {"sections": {}}), strict=True):
        part = {"notes": {"rows": [asdict(written)]}}
        whole = {"sections": {"tiles": {"report": part}, "lost": {"report": None}}} if content else part
        report.write_text(json.dumps(whole))
        main(Arguments(reports=(report,), table=table))
        assert read_rows(table.read_text()) == [written]
    with pytest.raises(UserError, match="no rows of tiles"):
        main(Arguments(reports=(tmp_path / "none.json",), table=table))
    report.write_text("[]")
    table.write_text("no table")
    with pytest.raises(UserError, match="must be a table of tiles"):
        main(Arguments(reports=(report,), table=table))
    assert table.read_text() == "no table"


def test_without_a_gpu_nothing_is_measured(tmp_path, capsys):
    main(Arguments(device="cpu", table=tmp_path / "tiles.json", json=tmp_path / "report.json"))
    assert "needs CUDA" in capsys.readouterr().out
    assert read_rows((tmp_path / "tiles.json").read_text()) == []
