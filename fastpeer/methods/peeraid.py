"""PeerAiD (Jung et al., CVPR 2024), as its released code computes it.

Inner:  x* maximises KL(P(x) ‖ S(x̃)), aimed at the student S alone; P is the peer          (eq. 2)
Peer:   γ1·H(y, P(x*)) + γ2·τp²·KL(S(x*) ‖ P(x*))                                           (eq. 3)
Student: λ1·H(y, S(x*)) + λ2·τ²·KL(P(x*) ‖ S(x*)) + λ3·τ²·KL(S(x) ‖ S(x*))                  (eq. 4)

Differs from the paper, as the released code does: the attack's temperature is 1 and the peer's term has
one of its own, the divergences are averaged over the classes too (`loss.reduction`), and both targets
that are the student's learn as well (`loss.peer_target_grad`, `loss.clean_target_grad`). S is run on x*
twice, for the peer's loss and for its own.
"""

from dataclasses import dataclass

from fastpeer.methods.table import (
    Attack,
    CrossEntropy,
    Divergence,
    Forward,
    LossSettings,
    Method,
    Reduction,
)


@dataclass(frozen=True, kw_only=True)
class Loss(LossSettings):
    """The weights of PeerAiD's loss (eq. 3 and 4 of the paper, as the released code computes them)."""

    temperature: float = 5.0
    """Temperature τ of the student's distillation terms."""
    peer_temperature: float = 1.0
    """Temperature τ_p of the peer's distillation term."""
    lambda1: float = 0.0
    """Student: cross-entropy with the labels."""
    lambda2: float = 1.0
    """Student: divergence from the peer on the adversarial images."""
    lambda3: float = 1.0
    """Student: divergence of its adversarial from its clean prediction."""
    gamma1: float = 1.0
    """Peer: cross-entropy with the labels."""
    gamma2: float = 0.1
    """Peer: divergence from the student."""
    reduction: Reduction = "mean"
    """Divergences divided by batch x classes (mean, as released) or by the batch alone (batchmean, as in the
    paper's formulas)."""
    peer_target_grad: bool = True
    """The student, target of the peer's divergence, receives that term's gradient too (as released)."""
    clean_target_grad: bool = True
    """The student's clean prediction, target of lambda3's term, receives its gradient too (as released)."""


def table(loss: Loss) -> Method:
    """Fill in the table of PeerAiD."""
    peer_adv = Forward("peer", "adversarial")
    student_adv, student_clean = Forward("student", "adversarial"), Forward("student", "clean")
    return Method(
        trained=("peer", "student"),
        attacks={"adversarial": Attack("student", Forward("peer", "clean"), start="gaussian")},
        forwards=(peer_adv, student_adv, student_adv, student_clean),
        terms={
            "peer_ce": CrossEntropy(peer_adv, loss.gamma1),
            "peer_kl_student": Divergence(
                peer_adv, student_adv, loss.gamma2, loss.peer_temperature, loss.reduction,
                loss.peer_target_grad,
            ),
            "student_ce": CrossEntropy(student_adv, loss.lambda1),
            "student_kl_peer": Divergence(
                student_adv, peer_adv, loss.lambda2, loss.temperature, loss.reduction
            ),
            "student_kl_clean": Divergence(
                student_adv, student_clean, loss.lambda3, loss.temperature, loss.reduction,
                loss.clean_target_grad,
            ),
        },
    )  # fmt: skip
