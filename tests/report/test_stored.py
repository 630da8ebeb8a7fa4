"""What eval has stored of each image takes the place of an attack, where it fits the page's network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fastpeer.config import Config
from fastpeer.evaluation.by_image import ByImage
from fastpeer.evaluation.results import Result, read_results, store_results
from fastpeer.report.comparison import comparison
from fastpeer.report.figures import LossScale, loss_scale, stored_class_chart
from fastpeer.report.records import Records, RunReport
from fastpeer.report.sections import Network
from fastpeer.report.stored import stored_verdicts
from fastpeer.run_folder import RunFolder
from tests.evaluation.results import result

LABELS = np.array([0, 0, 1, 1], np.int32)
FACTS = {"weights_sha256": "w", "data_sha256": "d", "images": 4, "total": 4}


def found(attack: str, right: list[bool], **facts: object) -> Result:
    correct = np.array(right)
    images = ByImage(
        np.arange(4, dtype=np.int32),
        LABELS,
        correct,
        np.ones(4, bool),
        np.zeros(0, np.int8),
        (),
        ("cat", "dog"),
    )
    return replace(result(attack, **FACTS, correct=int(correct.sum())), by_image=images, **facts)


CLEAN = found("clean", [True, True, True, False])
PGD10 = found("pgd10", [True, True, False, False])
PGD20 = found("pgd20", [True, False, False, False])


def report_of(folder: Path, *results: Result) -> RunReport:
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    store_results(run.results_file, results)
    facts = {"data": {"name": "pets", "test_sha256": "d"}}
    return RunReport(run, folder.name, Config(), facts, Records([], []), read_results(run.results_file), [])


def test_clean_images_come_first_and_the_strongest_attack_last(tmp_path: Path) -> None:
    stored = stored_verdicts(report_of(tmp_path / "a", PGD20, found("fgsm", [True] * 4), CLEAN, PGD10), "w")
    assert list(stored) == ["clean", "pgd10", "pgd20"]
    chart = stored_class_chart(stored)
    assert [one.name for one in chart.series] == ["clean", "PGD-20"]
    assert [one.points for one in chart.series] == [[(0, 100), (1, 50)], [(0, 50), (1, 0)]]
    assert chart.note == "As fastpeer eval found it, 4 test images, 2 of each class."


@pytest.mark.parametrize(
    "other",
    [
        {"weights_sha256": "x"}, {"data_sha256": "e"}, {"epsilon": 4 / 255}, {"norm": "l2"}, {"side": 64},
        {"source": "other"}, {"role": "peer"}, {"mean": (0.5,), "std": (0.5,)}, {"weights_key": "ema"},
    ],
)  # fmt: skip
def test_an_attack_that_does_not_fit_is_not_taken(tmp_path: Path, other: dict[str, object]) -> None:
    assert not stored_verdicts(report_of(tmp_path / "a", CLEAN, replace(PGD20, **other)), "w")


def test_damaged_verdicts_are_not_taken_and_that_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = report_of(tmp_path / "a", CLEAN, PGD10, PGD20)
    (file,) = (report.run.path / "verdicts").glob("pgd20-*.npz")
    file.write_bytes(b"other")
    assert list(stored_verdicts(report, "w")) == ["clean", "pgd10"]
    assert "its checksum differs): evaluate again; not used" in caplog.text
    assert not stored_verdicts(report_of(tmp_path / "b", CLEAN), "w")


def arrays(low: float, high: float) -> dict[str, np.ndarray]:
    return {
        "labels": LABELS, "clean": LABELS, "attacked": 1 - LABELS, "alphas": np.array([-1.0, 1.0]),
        "line_clean": np.array([low, high]), "line_attacked": np.array([low, np.nan]),
        "plane": np.array([[low, high], [np.inf, high]]), "epsilons": np.array([0.0]),
        "right": np.array([2]), "epsilon_images": np.array(4),
    }  # fmt: skip


def test_landscapes_of_several_runs_share_their_scale_and_say_so() -> None:
    scale = loss_scale([arrays(1, 2), arrays(3, 8)])
    assert scale == LossScale(top=8, low=1, high=8, runs=2)
    assert scale.note.endswith("from 1 (faint) to 8 (strong), the same for both runs on this page.")
    assert "runs" not in loss_scale([arrays(1, 2)]).note


def test_runs_are_compared_on_the_strongest_attack_that_both_have_stored(tmp_path: Path) -> None:
    both = [report_of(tmp_path / "a", CLEAN, PGD10, PGD20), report_of(tmp_path / "b", CLEAN, PGD10)]
    scale = loss_scale([arrays(1, 2)] * 2)
    networks = {one.name: Network(arrays(1, 2), stored_verdicts(one, "w"), scale) for one in both}
    _, section = comparison(both, networks)
    clean, attacked = section.tables
    assert clean.rows == [["a | b", "3", "0", "0", "1"]]
    assert "under PGD-10, each against itself: of 4 test images, as fastpeer eval found it" in attacked.title
    # Without, what was attacked for the page is compared.
    networks["b"] = replace(networks["b"], stored={})
    _, section = comparison(both, networks)
    assert [table.title.endswith("attacked for this page") for table in section.tables] == [True, True]
    assert section.tables[1].rows == [["a | b", "0", "0", "0", "4"]]
