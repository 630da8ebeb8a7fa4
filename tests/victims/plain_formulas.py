"""Our own kernels' plain formulas where the Triton kernels cannot run: on a CPU, in float64."""

from fastpeer.kernels import attack_head, convolution
from fastpeer.victims.convolution import PlainConvolutions


def let_formulas_run(monkeypatch) -> None:
    """Take float64 where the Triton kernels take less, and plain operators where cuDNN has an epilogue."""
    # What the kernels take is told by the shapes alone.
    monkeypatch.setattr(
        "fastpeer.victims.convolution.takes", lambda x, w, *how: convolution.takes(x.half(), w.half(), *how)
    )
    monkeypatch.setattr("fastpeer.victims.chain.takes", lambda x, w: attack_head.takes(x.float(), w.float()))
    monkeypatch.setattr(
        "fastpeer.victims.convolution._with_epilogue",
        lambda conv, x, residual: PlainConvolutions().forward(conv, x, residual, relu=True),
    )
