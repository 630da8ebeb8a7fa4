"""PeerAiD (Jung et al., CVPR 2024), as its released code computes it.

Inner:  x* maximises KL(P(x) ‖ S(x̃)), aimed at the student S alone; P is the peer          (eq. 2)
Peer:   γ1·H(y, P(x*)) + γ2·τp²·KL(S(x*) ‖ P(x*))                                           (eq. 3)
Student: λ1·H(y, S(x*)) + λ2·τ²·KL(P(x*) ‖ S(x*)) + λ3·τ²·KL(S(x) ‖ S(x*))                  (eq. 4)

Differs from the paper, as the released code does: the attack's temperature is 1 and the peer's term has
one of its own, the divergences are averaged over the classes too (`loss.reduction`), and both targets
that are the student's learn as well (`loss.peer_target_grad`, `loss.clean_target_grad`).
"""

from fastpeer.config import Config
from fastpeer.methods.table import Attack, CrossEntropy, Divergence, Forward, Method


def peeraid(config: Config) -> Method:
    """Fill in the table of PeerAiD."""
    loss = config.loss
    peer_adv = Forward("peer", "adversarial")
    # The released code runs the student on x* twice, for the peer's loss and for its own.
    student_adv = Forward("student", "adversarial", counts=2)
    student_clean = Forward("student", "clean")
    return Method(
        trained=("peer", "student"),
        attack=Attack(student="student", away_from="peer"),
        forwards=(peer_adv, student_adv, student_clean),
        terms={
            "peer_ce": CrossEntropy(peer_adv, loss.gamma1),
            "peer_kl_student": Divergence(
                peer_adv, student_adv, loss.gamma2, loss.peer_temperature, loss.peer_target_grad
            ),
            "student_ce": CrossEntropy(student_adv, loss.lambda1),
            "student_kl_peer": Divergence(student_adv, peer_adv, loss.lambda2, loss.temperature, False),
            "student_kl_clean": Divergence(
                student_adv, student_clean, loss.lambda3, loss.temperature, loss.clean_target_grad
            ),
        },
        reduction=loss.reduction,
    )
