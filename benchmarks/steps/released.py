"""The authors' own training loop, taken from a checkout of their repository as it lies there.

Their main.py trains as soon as it is imported and wants data sets on disk. So their attack and models are
imported from the checkout, and the function `train_kd` is taken out of main.py's source and run over
batches held in memory, among the global names it expects. None of their code is kept here.
"""

import ast
import importlib.util
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.measuring import Run
from benchmarks.steps.cases import Case
from benchmarks.steps.literal import peeraid_loss, released_sgd
from fastpeer.config import Config
from fastpeer.data.stream import Batch
from fastpeer.errors import UserError, one_line

DATASETS = {"tiny": "tinyimagenet"}


class ReleasedCode:
    """A checkout of the released PeerAiD code.

    Args:
        path: of the checkout.

    Raises:
        UserError: it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.loop = _function(path / "main.py", "train_kd")
            self.attacks = _imported(path / "attack_function.py", "released_attack_function")
            self.models = _imported(path / "models" / "__init__.py", "released_models")
        except (OSError, SyntaxError, ImportError, LookupError) as error:
            raise UserError(
                f"--reference {path}: is not a checkout of the released PeerAiD code ({one_line(error)});"
                " clone https://github.com/jaewonalive/PeerAiD"
            ) from None

    def runner(self, case: Case, device: torch.device, batches: Sequence[Batch]) -> Run:
        """Return what trains so many steps: one call of their loop, over as many batches.

        Raises:
            UserError: on a CPU, since the released attack copies its noise to CUDA by name.
        """
        if device.type != "cuda":
            raise UserError("the released attack needs CUDA: it copies its noise there by name")
        return self.loop_over(case, device, batches)

    def loop_over(self, case: Case, device: torch.device, batches: Sequence[Batch]) -> "Loop":
        """Return their loop over batches, round and round."""
        names = self._globals(case, device)
        # Their own code, which the user pointed at.
        exec(self.loop, names)
        return Loop(names, cycle([(batch.images, batch.labels) for batch in batches]))

    def networks(self, case: Case, device: torch.device) -> tuple[nn.Module, nn.Module]:
        """Build student and peer as the released code does."""
        dataset = DATASETS.get(case.dataset, case.dataset)
        student, peer = (self.models.model_builder(case.model, case.classes, dataset) for _ in range(2))
        return student.to(device), peer.to(device)

    def _globals(self, case: Case, device: torch.device) -> dict[str, Any]:
        config = case.config("fp32")
        student, peer = self.networks(case, device)
        attack = self.attacks.LinfPeerAttack(student, config.attack.epsilon, config.attack.step_size)
        return {
            **{"torch": torch, "nn": nn, "F": F, "args": released_arguments(config), "device": device},
            **{"student_net": student, "peer_net": peer, "k_train": config.attack.steps},
            "adversary_student_training": attack,
            "student_optimizer": released_sgd(student, config.optim),
            "peer_optimizer": released_sgd(peer, config.optim),
            "peer_criterion": nn.CrossEntropyLoss(),
        }


class Loop:
    """Their training loop among its global names."""

    def __init__(self, names: dict[str, Any], pairs: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.names = names
        self.pairs = pairs

    def __call__(self, steps: int) -> None:
        """Train on so many batches, as one epoch of theirs."""
        self.names["train_loader"] = list(islice(self.pairs, steps))
        with _quiet():
            self.names["train_kd"](0)


def released_arguments(config: Config) -> Namespace:
    """Return the settings under the names of the released command line."""
    loss = peeraid_loss(config)
    return Namespace(
        temperature=loss.temperature,
        re_kd_temperature=loss.peer_temperature,
        lamb1=loss.lambda1,
        lamb2=loss.lambda2,
        lamb3=loss.lambda3,
        gamma1=loss.gamma1,
        gamma2=loss.gamma2,
        swa_s=False,
        debug_mode=False,
    )


def _function(path: Path, name: str) -> Any:
    """Compile one function of a source file."""
    tree = ast.parse(path.read_text("utf-8"))
    found: list[ast.stmt] = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    if not found:
        raise LookupError(f"{path.name} has no {name}")
    return compile(ast.Module(found, type_ignores=[]), str(path), "exec")


def _imported(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no {path.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _without_pytorchcv():
        spec.loader.exec_module(module)
    return module


@contextmanager
def _without_pytorchcv() -> Iterator[None]:
    """Their models import it for networks that are not compared here."""
    names = [name for name in ("pytorchcv", "pytorchcv.model_provider") if name not in sys.modules]
    for name in names:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].get_model = None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Their loop prints, and PyTorch warns of its losses at each step."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
