"""Results: confidence intervals, and the file they are stored in."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpeer import files
from fastpeer.errors import UserError
from fastpeer.evaluation.results import Result, read_results, store_entry, store_results
from tests.evaluation.results import result

RESULT = Result(
    target="run best", weights_sha256="ab", attack="pgd20", correct=3, images=10, total=10, epsilon=8 / 255,
    step_size=2 / 255, seed=0, batch_size=256, targets=None, dataset="digits", data_sha256="cd", seconds=1.5,
    torch="2.8",
)  # fmt: skip


def stored(file):
    return json.loads(file.read_text())["results"]


@given(images=st.integers(1, 5000), data=st.data())
def test_confidence_interval_of_a_part_of_the_images_is_wilsons(images, data):
    correct = data.draw(st.integers(0, images))
    result = replace(RESULT, correct=correct, images=images, total=images + 1)
    z, p = 1.959963984540054, correct / images
    centre = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * math.sqrt(p * (1 - p) / images + z * z / (4 * images**2))
    expected = (100 * (centre - half), 100 * (centre + half))
    assert result.confidence_interval == pytest.approx(expected, abs=1e-9)
    assert result.accuracy == 100 * correct / images


def test_all_images_need_no_interval():
    assert RESULT.confidence_interval is None


def test_later_result_replaces_the_earlier_one_with_the_same_key(tmp_path):
    file = tmp_path / "results.json"
    store_results(file, [RESULT, replace(RESULT, attack="clean", correct=9)])
    store_results(file, [replace(RESULT, correct=5, seconds=2.0)])
    assert [(entry["attack"], entry["correct"]) for entry in stored(file)] == [("pgd20", 5), ("clean", 9)]
    assert list(tmp_path.iterdir()) == [file]


def test_evaluations_at_the_same_time_all_keep_their_results(tmp_path):
    file, count = tmp_path / "results.json", 12

    def store(worker):
        for number in range(count):
            store_results(file, [replace(RESULT, seed=100 * worker + number)])

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(store, range(4)))
    assert len(stored(file)) == 4 * count
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_another_process_puts_into_place_meanwhile_is_begun_anew(tmp_path, monkeypatch):
    file, wait, gone = tmp_path / "results.json", files._wait_for_lock, []

    def after_another(stream, path):
        wait(stream, path)
        if not gone:
            gone.append(path)
            path.unlink()

    monkeypatch.setattr(files, "_wait_for_lock", after_another)
    store_results(file, [RESULT])
    assert read_results(file) == [RESULT]
    assert len(gone) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weights_sha256", "x"),
        ("target", "run last"),
        ("images", 5),
        ("norm", "l2"),
        ("epsilon", 0.1),
        ("step_size", 0.1),
        ("seed", 1),
        ("data_sha256", "x"),
    ],
)
def test_results_with_different_keys_are_kept_side_by_side(tmp_path, name, value):
    file = tmp_path / "results.json"
    store_results(file, [RESULT])
    store_results(file, [replace(RESULT, **{name: value})])
    assert len(stored(file)) == 2


def test_the_count_of_non_finite_logits_is_kept_where_there_are_any(tmp_path):
    file, broken = tmp_path / "results.json", replace(RESULT, attack="fgsm", non_finite=4)
    store_results(file, [RESULT, broken])
    assert [entry.get("non_finite") for entry in stored(file)] == [None, 4]
    assert read_results(file) == [RESULT, broken]


def test_warnings_are_kept_where_there_are_any(tmp_path):
    file, doubtful = (
        tmp_path / "results.json",
        replace(RESULT, attack="fgsm", warnings=("it rounds", "it draws")),
    )
    store_results(file, [RESULT, doubtful])
    assert [entry.get("warnings") for entry in stored(file)] == [None, ["it rounds", "it draws"]]
    store_results(file, [replace(RESULT, attack="aa")])
    assert read_results(file)[:2] == [RESULT, doubtful]


def test_older_results_without_a_norm_are_of_linf(tmp_path):
    file = tmp_path / "results.json"
    store_results(file, [RESULT])
    old = json.loads(file.read_text())
    assert old["results"][0].pop("norm") == "linf"
    file.write_text(json.dumps(old))
    assert read_results(file) == [RESULT]
    store_results(file, [replace(RESULT, norm="l2"), RESULT])
    assert [entry["norm"] for entry in stored(file)] == ["linf", "l2"]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"3", b'{"results": [3]}', b'{"results": [{"a": 1}]}', b"\x00\xff"]
)
def test_foreign_file_is_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "results.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"results\.json: not results of fastpeer eval") as refusal:
        store_results(file, [RESULT])
    assert "\n" not in str(refusal.value)
    assert file.read_bytes() == content


def test_other_weights_or_normalisation_of_a_file_are_results_of_their_own(tmp_path):
    file = tmp_path / "results.json"
    others = [replace(RESULT, weights_key="state_dict_ema"), replace(RESULT, mean=(0.5,), std=(0.25,))]
    store_results(file, [RESULT, *others])
    assert read_results(file) == [RESULT, *others]
    assert [entry.get("weights_key") for entry in stored(file)] == [None, "state_dict_ema", None]


def test_entries_of_another_kind_stand_beside_results_and_replace_those_with_their_key(tmp_path):
    file, key = tmp_path / "results.json", ("target", "sigma")
    store_results(file, [result("clean")])
    for sigma, found in ((0.25, 1), (0.5, 2), (0.25, 3)):
        store_entry(file, "certificates", {"target": "a", "sigma": sigma, "found": found}, key)
    store_results(file, [result("fgsm")])
    assert [one.attack for one in read_results(file)] == ["clean", "fgsm"]
    certificates = json.loads(file.read_text("utf-8"))["certificates"]
    assert [entry["found"] for entry in certificates] == [2, 3]
    file.write_text('{"results": [], "certificates": 3}', "utf-8")
    with pytest.raises(UserError, match="certificates must be a list"):
        store_entry(file, "certificates", {"target": "a", "sigma": 1}, key)


def test_surrogates_of_the_same_weights_have_results_of_their_own(tmp_path):
    file = tmp_path / "results.json"
    store_results(file, [result("fgsm", source=name, source_sha256="0") for name in ("a best", "b best")])
    assert [one.source for one in read_results(file)] == ["a best", "b best"]
