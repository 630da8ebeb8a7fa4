"""CAT, collaborative adversarial training (Liu et al., arXiv 2303.14922), as its released code computes it.

The student S learns by TRADES, its peer P by adversarial training; each also learns what the other makes of
its examples. x' are the examples of S, x" those of P.

Inner:  x' maximises KL(S(x) ‖ S(x')); x" maximises H(y, P(x")), from a start within [0, 1]
Outer:  (1 − α)·[H(y, S(x)) + β·KL(S(x) ‖ S(x')) + ½·H(y, P(x")) + ½·H(y, P(x)) + MSE(P(x"), P(x))]
        + α·[KL(P(x') ‖ S(x')) + KL(S(x") ‖ P(x"))],  α = 19/20

MSE is between logits, averaged over batch and classes. The targets in the second line do not learn, those
in the first do. The code does not say which network the paper reports; the student is evaluated here.
"""

from dataclasses import dataclass

from fastpeer.methods.table import (
    LABELS,
    Attack,
    CrossEntropy,
    Divergence,
    Forward,
    LogitDistance,
    LossSettings,
    Method,
)


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of CAT."""

    alpha: float = 19 / 20
    """What the networks learn from each other; what is left to 1 goes to what each learns by itself."""
    beta: float = 6.0
    """Student, within that: divergence of its adversarial from its clean prediction, as in TRADES."""


def table(loss: Loss) -> Method:
    """Fill in the table of CAT."""
    own = 1 - loss.alpha
    clean, adversarial = Forward("student", "clean"), Forward("student", "adversarial")
    peer_clean, peer_adversarial = Forward("peer", "clean"), Forward("peer", "peer_adversarial")
    # What each makes of the other's examples.
    student_told, peer_told = Forward("peer", "adversarial"), Forward("student", "peer_adversarial")
    return Method(
        trained=("student", "peer"),
        attacks={
            "adversarial": Attack("student", away_from=clean, start="gaussian"),
            "peer_adversarial": Attack("peer", LABELS, start="uniform", clamped=True),
        },
        forwards=(clean, adversarial, peer_told, peer_adversarial, peer_clean, student_told),
        afterwards=(clean,),
        terms={
            "student_ce": CrossEntropy(clean, own),
            "student_kl_clean": Divergence(adversarial, clean, own * loss.beta, target_grad=True),
            "student_kl_peer": Divergence(adversarial, student_told, loss.alpha),
            "peer_ce": CrossEntropy(peer_adversarial, own / 2),
            "peer_clean_ce": CrossEntropy(peer_clean, own / 2),
            "peer_logits": LogitDistance(peer_adversarial, peer_clean, own, target_grad=True),
            "peer_kl_student": Divergence(peer_adversarial, peer_told, loss.alpha),
        },
    )
