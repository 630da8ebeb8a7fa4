"""What kernels take of a GPU is told without one."""

import pytest

from benchmarks.speed import compiled_kernels
from benchmarks.speed.compiled_kernels import Arguments, launches, main
from fastpeer.errors import UserError

pytest.importorskip("triton")


def test_every_case_is_compiled_where_it_can_run():
    found = [(case, capability) for _, case, capability, _ in launches(Arguments(only=("convolution",)))]
    assert ("forward-64", 90) in found
    assert ("forward-64", 80) not in found
    with pytest.raises(UserError, match=r"--only must be among .*convolution.*, got sum"):
        Arguments(only=("sum",))


def test_what_fails_is_named_and_the_rest_is_told(monkeypatch, capsys):
    def usages(capability, launch):
        if capability == 80:
            raise RuntimeError("no such GPU")
        yield {"registers": 40.0, "bytes of shared memory": 100.0, "bytes spilled": 0.0}

    monkeypatch.setattr(compiled_kernels, "usages", usages)
    main(Arguments(only=("pgd_update",), capabilities=(80, 90)))
    shown = capsys.readouterr().out
    assert "no such GPU" in shown
    assert "40" in shown


@pytest.mark.soak
def test_a_kernel_is_compiled(capsys):
    main(Arguments(only=("bias_sum_relu",), capabilities=(90,)))
    assert "not measured" not in capsys.readouterr().out
