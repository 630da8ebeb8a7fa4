"""Any table's step, by any parts of the engine, against plain autograd's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fastpeer.config import AttackConfig, Config, EngineConfig
from fastpeer.data.stream import Batch
from fastpeer.methods.table import (
    LABELS,
    Attack,
    Confidence,
    CrossEntropy,
    Divergence,
    Forward,
    InputGradientDistance,
    LogitDistance,
    Method,
)
from fastpeer.step.step import TrainingStep

CLASSES, BATCH = 3, 4
TRAINED, FROZEN = ("student", "peer"), ("teacher",)
IMAGES = ("clean", "adversarial")
RUN = [Forward(network, images) for network in TRAINED for images in IMAGES]
SPOKEN_OF = [*RUN, *(Forward(network, images) for network in FROZEN for images in IMAGES)]


class TwoLayers(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), norm(4)
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(4, CLASSES)

    def forward(self, images):
        # Smooth, so that there is a second derivative.
        shown = F.softplus(self.norm(self.first(images)))
        return self.linear(torch.flatten(self.pool(shown), 1))


class Own(nn.BatchNorm2d):
    """Which cannot be made to count."""


def make_networks(norm):
    networks = {}
    for seed, role in enumerate((*TRAINED, *FROZEN)):
        torch.manual_seed(seed)
        networks[role] = TwoLayers(norm if role == "student" else nn.BatchNorm2d).double()
    networks["teacher"].norm.running_mean.uniform_(-0.5, 0.5)
    networks["teacher"].eval().requires_grad_(False)
    return networks


def batches():
    random = torch.Generator().manual_seed(2)
    for _ in range(2):
        images = torch.rand(BATCH, 3, 5, 5, generator=random, dtype=torch.float64)
        yield Batch(images, torch.randint(0, CLASSES, (BATCH,), generator=random))


def literal_term(term, logits, labels, images, teacher):
    rows = torch.arange(BATCH)
    prediction = logits[term.prediction]
    if isinstance(term, InputGradientDistance):
        own, aim = (
            torch.autograd.grad(F.cross_entropy(one, labels), images, create_graph=True)[0]
            for one in (prediction, teacher(images))
        )
        return term.weight * (own - aim.detach()).square().sum().sqrt() / BATCH
    share = torch.ones(BATCH).double()
    if term.sample_weight is not None:
        sure = (
            logits[term.sample_weight.forward].detach().softmax(1)[rows, labels] ** term.sample_weight.power
        )
        share = 1 - sure if term.sample_weight.complement else sure
    if isinstance(term, CrossEntropy):
        return term.weight * (share * -prediction.log_softmax(1)[rows, labels]).sum() / BATCH
    target = logits[term.target] if term.target_grad else logits[term.target].detach()
    divisor = BATCH * CLASSES if term.reduction == "mean" else BATCH
    if isinstance(term, LogitDistance):
        return term.weight * (share[:, None] * (prediction - target) ** 2).sum() / divisor
    log_target, log_prediction = ((one / term.temperature).log_softmax(1) for one in (target, prediction))
    each = log_target.exp() * (log_target - log_prediction)
    return term.weight * term.temperature**2 * (share[:, None] * each).sum() / divisor


def literal_step(method, networks, optimizer, clean, adversarial, labels):
    leaf = clean.clone().requires_grad_()
    images = {"clean": leaf, "adversarial": adversarial}
    logits = {}
    for forward in method.forwards:
        found = networks[forward.network](images[forward.images])
        logits.setdefault(forward, found)
    for forward in SPOKEN_OF:
        if forward.network in FROZEN:
            logits[forward] = networks[forward.network](images[forward.images]).detach()
    values = [literal_term(one, logits, labels, leaf, networks["teacher"]) for one in method.terms.values()]
    weights = [one for role in TRAINED for one in networks[role].parameters()]
    gradients = torch.autograd.grad(sum(values), weights, allow_unused=True)
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient
    optimizer.step()
    with torch.no_grad():
        for forward in method.afterwards:
            networks[forward.network](images[forward.images])
    return [value.item() for value in values]


numbers = st.floats(0.05, 5)
reductions = st.sampled_from(["mean", "batchmean"])


def terms_over(run):
    taught = st.sampled_from(run)
    others = st.sampled_from([*run, *(one for one in SPOKEN_OF if one.network in FROZEN)])
    known = st.none() | st.builds(Confidence, others, st.floats(0.1, 2), st.booleans())
    return st.one_of(
        st.builds(CrossEntropy, taught, numbers, known),
        st.builds(Divergence, taught, others, numbers, st.floats(0.5, 5), reductions, st.booleans(), known),
        st.builds(LogitDistance, taught, others, numbers, reductions, st.booleans(), known),
    )


@st.composite
def tables(draw):
    run = draw(st.lists(st.sampled_from(RUN), min_size=1, max_size=7))
    once = list(dict.fromkeys(run))
    terms = dict(enumerate(draw(st.lists(terms_over(once), min_size=1, max_size=5))))
    clean = [one for one in once if one.images == "clean"]
    if clean and draw(st.booleans()):
        distance = st.builds(InputGradientDistance, st.sampled_from(clean), st.just("teacher"), numbers)
        terms["gradient"] = draw(distance)
    afterwards = draw(st.lists(st.sampled_from(RUN), max_size=2))
    return Method(
        TRAINED,
        tuple(run),
        {str(name): term for name, term in terms.items()},
        {"adversarial": Attack("student", LABELS, "none")},
        tuple(afterwards),
    )


@given(
    method=tables(),
    merge=st.sampled_from(["on", "off"]),
    fold=st.sampled_from(["on", "off"]),
    norm=st.sampled_from([nn.BatchNorm2d, nn.BatchNorm2d, Own]),
)
def test_any_table_makes_the_step_that_it_says(method, merge, fold, norm):
    engine = EngineConfig(merge=merge, fold=fold, chain=fold, compile="off")
    config = Config(precision="fp64", attack=AttackConfig(steps=2), engine=engine)
    ours, theirs = make_networks(norm), make_networks(norm)
    step = TrainingStep(config, method, ours)
    optimizer = torch.optim.SGD(
        [one for role in TRAINED for one in theirs[role].parameters()], 0.1, momentum=0.9, weight_decay=2e-4
    )
    for number, batch in enumerate(batches()):
        adversarial = step.adversarial(batch.images, batch.labels)["adversarial"]
        result = step.train_on(batch, number)
        values = literal_step(method, theirs, optimizer, batch.images, adversarial, batch.labels)
        assert result.losses.tolist() == pytest.approx(values, rel=1e-8, abs=1e-11)
        for role in ours:
            torch.testing.assert_close(ours[role].state_dict(), theirs[role].state_dict(), rtol=0, atol=1e-9)
