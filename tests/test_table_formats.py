"""The formats of tables, against readers that are not fastpeer's."""

import csv
import io
import json

import pytest
from rich.console import Console

from fastpeer.printing import FigureTable, Row
from fastpeer.table_formats import report_in

ARABIC = "قطة"
TABLE = FigureTable(
    ("student", "parameters", "clean"),
    [[Row(f"a_{ARABIC} | 50 % \u202e", ["77,652", "98.87"])], [Row('b, "c"\x1b[31m', ["12", "9.10 (!)"])]],
)


def written(form, tables=(TABLE,), title="accuracy in %"):
    stream = io.StringIO()
    report = report_in(form, Console(file=stream))
    report.tables(title, tables)
    report.note("a note_1")
    report.end()
    return stream.getvalue()


def test_csv_is_read_back_with_plain_numbers(capsys):
    rows = list(csv.DictReader(io.StringIO(written("csv"))))
    assert [row["parameters"] for row in rows] == ["77652", "12"]
    assert [row["clean"] for row in rows] == ["98.87", "9.10 (!)"]
    assert rows[1]["student"] == 'b, "c"\\x1b[31m'
    assert {row["table"] for row in rows} == {"accuracy in %"}
    assert capsys.readouterr().err == "a note_1\n"


def test_csv_repeats_its_headings_only_where_they_change():
    other = FigureTable(("run", "steps"), [[Row("x", ["3"])]])
    assert written("csv", [TABLE, TABLE]).count("table,student") == 1
    assert written("csv", [TABLE, other]).endswith("\n\ntable,run,steps\naccuracy in %,x,3\n")


def test_json_has_numbers_and_notes():
    document = json.loads(written("json", [TABLE, FigureTable(("x", "y"), [[Row("7", [""])]], "part")]))
    first, second = document["tables"]
    assert first["rows"][0]["parameters"] == 77652
    assert [row["clean"] for row in first["rows"]] == [98.87, "9.10 (!)"]
    assert second == {"title": "accuracy in %: part", "rows": [{"x": "7", "y": None}]}
    assert document["notes"] == ["a note_1"]


def test_latex_is_escaped_and_ruled():
    lines = written("latex").splitlines()
    assert lines[0] == "% accuracy in %"
    assert lines[1] == r"\begin{tabular}{lrr}"
    assert rf"a\_{ARABIC} | 50 \% \textbackslash{{}}u202e & 77,652 & 98.87 \\" in lines
    assert lines.count(r"\midrule") == 2
    assert lines[-1] == "% a note_1"


def test_markdown_has_as_many_bars_in_each_row():
    lines = [line for line in written("markdown").splitlines() if line.startswith("|")]
    assert lines[1] == "| --- | ---: | ---: |"
    assert {line.replace(r"\|", "").count("|") for line in lines} == {4}
    assert r"a\_" in lines[2]


@pytest.mark.parametrize("form", ["csv", "json", "latex", "markdown"])
def test_names_of_strangers_steer_no_terminal(form):
    assert not {"\x1b", "\u202e"} & set(written(form))
