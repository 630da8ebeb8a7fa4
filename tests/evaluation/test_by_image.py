"""How each image was classified: the file, the accuracy on each class, and two students image by image."""

import io
import zipfile
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fastpeer.errors import UserError
from fastpeer.evaluation.by_image import ByImage, ClassAccuracy, read_by_image, write_by_image
from fastpeer.evaluation.comparison import mcnemar
from fastpeer.evaluation.results import images_of, read_results, store_results, verdicts_folder
from tests.evaluation.test_results import RESULT

FOUND = ByImage(
    index=np.array([0, 3, 6, 9], np.int32), label=np.array([0, 2, 2, 0], np.int32),
    correct=np.array([True, False, True, True]), finite=np.array([True, True, False, True]),
    fallen=np.array([-1, 2, 0, -1], np.int8), attacks=("apgd-ce", "apgd-t"), classes=("ant", "bee", "käfer"),
)  # fmt: skip


def test_what_was_written_is_read(tmp_path):
    name, checksum = write_by_image(FOUND, tmp_path / "verdicts", "aa-1")
    assert name == f"aa-1-{checksum[:12]}.npz"
    found = read_by_image(tmp_path / "verdicts" / name, checksum)
    for field in ("index", "label", "correct", "finite", "fallen"):
        assert getattr(found, field).dtype == getattr(FOUND, field).dtype
        assert getattr(found, field).tolist() == getattr(FOUND, field).tolist()
    assert (found.attacks, found.classes) == (FOUND.attacks, FOUND.classes)
    assert write_by_image(found, tmp_path / "verdicts", "aa-1") == (name, checksum)


def test_classes_without_images_are_not_the_worst():
    assert FOUND.by_class() == [
        ClassAccuracy("ant", 2, 2),
        ClassAccuracy("bee", 0, 0),
        ClassAccuracy("käfer", 1, 2),
    ]
    assert FOUND.worst_class() == ClassAccuracy("käfer", 1, 2)


def changed(**arrays):
    stream = io.BytesIO()
    whole = {**dict(np.load(io.BytesIO(FOUND.content()))), **arrays}
    np.savez(stream, **{name: array for name, array in whole.items() if array is not None})
    return stream.getvalue()


def bomb():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("index.npy", bytes(1 << 29))
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        FOUND.content()[:-30],
        changed(label=None),
        changed(label=np.array([0, 1, 2, 3], np.int32)),
        changed(correct=np.ones(3, bool)),
        changed(index=np.array([None] * 4, object)),
        changed(more=np.ones(1)),
        bomb(),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path, content):
    file = tmp_path / "x.npz"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.npz.* evaluate again$") as refusal:
        read_by_image(file, sha256(content).hexdigest())
    assert "\n" not in str(refusal.value)


def test_a_changed_or_missing_file_is_named(tmp_path):
    name, checksum = write_by_image(FOUND, tmp_path, "aa")
    (tmp_path / name).write_bytes(changed(correct=np.ones(4, bool)))
    with pytest.raises(UserError, match="damaged"):
        read_by_image(tmp_path / name, checksum)
    with pytest.raises(UserError, match="No such file"):
        read_by_image(tmp_path / "gone.npz", checksum)


def test_a_result_names_its_file_and_a_later_one_removes_it(tmp_path):
    file = tmp_path / "results.json"
    store_results(file, [replace(RESULT, by_image=FOUND), replace(RESULT, attack="clean", by_image=FOUND)])
    first, clean = read_results(file)
    assert images_of(file, first).correct.tolist() == FOUND.correct.tolist()
    other = replace(FOUND, correct=np.zeros(4, bool))
    store_results(file, [replace(RESULT, by_image=other)])
    second, _ = read_results(file)
    assert images_of(file, second).correct.tolist() == [False] * 4
    names = {path.name for path in verdicts_folder(file).iterdir()}
    assert names == {second.by_image_file, clean.by_image_file}
    assert first.by_image_file not in names


def test_a_name_that_leads_out_of_the_folder_removes_nothing(tmp_path):
    file, precious = tmp_path / "run" / "results.json", tmp_path / "precious.npz"
    file.parent.mkdir()
    precious.write_text("x")
    store_results(file, [replace(RESULT, by_image_file="../../precious.npz")])
    store_results(file, [RESULT])
    assert precious.exists()


def test_an_older_result_tells_what_it_lacks(tmp_path):
    with pytest.raises(UserError, match="older fastpeer"):
        images_of(tmp_path / "results.json", RESULT)


def test_the_folder_beside_weights_of_no_run(tmp_path):
    assert verdicts_folder(tmp_path / "net.pt.results.json") == tmp_path / "net.pt.verdicts"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300))
def test_mcnemar_is_the_binomial_test_of_scipy(pairs):
    first, second = np.array(pairs).T
    found = mcnemar(first, second)
    more, less = pairs.count((True, False)), pairs.count((False, True))
    assert (found.first_only, found.second_only, found.images) == (more, less, len(pairs))
    expected = binomtest(more, more + less).pvalue if more + less else 1.0
    assert found.p == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_images():
    first, second = np.zeros(10_000, bool), np.zeros(10_000, bool)
    first[:370], second[-120:] = True, True
    assert mcnemar(first, second).p == pytest.approx(binomtest(120, 490).pvalue, rel=1e-9)
