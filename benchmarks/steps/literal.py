"""The literal step of every method: the transcription that the tests hold fastpeer's step against.

tests/literal has one of each released training step; it is measured as it stands there, not written down a
second time. PeerAiD's does what the released loop makes the host do: the start noise is drawn on the CPU and
copied, four numbers of each step are read back. The others' start noise is drawn on the device.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.steps.cases import Case, measured_epoch, measured_table, random_teachers, trained_networks
from fastpeer.config import Config, OptimConfig
from fastpeer.errors import UserError
from fastpeer.methods.peeraid import Loss
from fastpeer.methods.table import Attack
from fastpeer.step.attacks import overruled


def literal_step(
    case: Case, device: torch.device, layout: torch.memory_format, autocast: torch.dtype | None
) -> "LiteralStep":
    """Build the networks of a case and return the literal step of its method.

    Args:
        case: what is trained.
        device: where.
        layout: of the weights.
        autocast: the dtype of mixed precision, see `LiteralStep`.
    """
    networks = trained_networks(case, device, layout)
    for role, teacher in random_teachers(case, device).items():
        networks[role] = teacher.to(memory_format=layout)  # type: ignore[call-overload]
    return LiteralStep(case.config("fp32"), networks, autocast)


class LiteralStep:
    """Does a method's literal training step on each batch.

    Args:
        config: method, attack, loss and optimizer.
        networks: trained ones and teachers, on the device they are to compute on.
        autocast: run the networks under autocast to this dtype, in the attack too. PeerAiD's losses run under
            it as well, with a gradient scaler for float16; those of the others are computed in float32.
    """

    def __init__(
        self, config: Config, networks: Mapping[str, nn.Module], autocast: torch.dtype | None = None
    ) -> None:
        self.config = config
        self.epoch = measured_epoch(config)
        self.attacks = {
            name: overruled(attack, config.attack) for name, attack in measured_table(config).attacks.items()
        }
        self.module = transcription(config.method)
        self.settings = literal_settings(config, self.attacks, self.module)
        self.optimizers = {name: released_sgd(networks[name], config.optim) for name in config.table.trained}
        self.networks = dict(networks)
        self.mixed_precision: dict[str, Any] = {}
        if autocast is not None and config.method == "peeraid":
            self.mixed_precision = mixed_precision(next(networks["student"].parameters()).device, autocast)
        elif autocast is not None:
            self.networks = {name: Cast(network, autocast) for name, network in networks.items()}
        # What MTARD's weights follow.
        self.state: dict[str, float] = {}

    def __call__(
        self, images: Tensor, labels: Tensor, noise: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """Train on images (B, 3, H, W) and labels int64 (B,), both on the device; return the losses read.

        `noise`, (B, 3, H, W) for each attack, takes the place of the random starts.
        """
        read: dict[str, float] = self.module.training_step(
            self.networks, self.optimizers, images, labels, self.settings,
            self._noise(images) if noise is None else noise, self.epoch, self.state, **self.mixed_precision,
        )  # fmt: skip
        return read

    def set_learning_rate(self, lr: float) -> None:
        """Set it for all trained networks."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = lr

    def _noise(self, images: Tensor) -> dict[str, Tensor]:
        """Draw the starts, but for PeerAiD, which draws its own on the host while the device is busy."""
        if self.config.method == "peeraid":
            return {}
        settings = self.config.attack
        draws: dict[str, Callable[[], Tensor]] = {
            "uniform": lambda: settings.epsilon * (2 * torch.rand_like(images) - 1),
            "gaussian": lambda: settings.start_std * torch.randn_like(images),
            "none": lambda: torch.zeros_like(images),
        }
        return {name: draws[attack.start]() for name, attack in self.attacks.items()}


def mixed_precision(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return what PeerAiD's literal step takes for autocast to a dtype; only float16 is scaled."""
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    return {"casting": partial(torch.autocast, device.type, dtype), "scaler": scaler}


class Cast(nn.Module):
    """A network under autocast, with logits in float32."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, C)."""
        with torch.autocast(images.device.type, self.dtype):
            logits: Tensor = self.network(images)
        return logits.float()


def released_sgd(network: nn.Module, optim: OptimConfig) -> torch.optim.SGD:
    """Return the SGD of the released code, which has one for each network."""
    return torch.optim.SGD(
        network.parameters(), lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay
    )


def peeraid_loss(config: Config) -> Loss:
    """Return the settings of PeerAiD's loss.

    Raises:
        UserError: they are another method's.
    """
    if not isinstance(config.loss, Loss):
        raise UserError(f"the released step is PeerAiD's: the method must be peeraid, got {config.method}")
    return config.loss


def transcription(method: str) -> ModuleType:
    """Import a method's literal step from the tests, which lie beside the benchmarks."""
    return importlib.import_module(f"tests.literal.{method.replace('-', '_')}")


RENAMED = {
    "labels": "ce_weight",
    "natural": "natural_teacher_weight",
    "robust": "teacher_weight",
    "rate": "eta",
    "target_grad": "clean_target_grad",
}
"""What the transcriptions call a setting of a loss, where that is something else."""


def literal_settings(config: Config, attacks: Mapping[str, Attack], module: ModuleType) -> Any:
    """Return a run's settings as a transcription takes them."""
    values = {**asdict(config.attack), **_of_attacks(attacks), **_of_loss(asdict(config.loss))}
    known = [entry.name for entry in fields(module.Settings)]
    return module.Settings(**{name: value for name, value in values.items() if name in known})


def _of_attacks(attacks: Mapping[str, Attack]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, attack in attacks.items():
        whose = name.removesuffix("adversarial")
        values[f"{whose}attack_batch_norm"] = attack.batchnorm
        values[f"{whose}clamp_start"] = attack.clamped
    return values


def _of_loss(loss: dict[str, Any]) -> dict[str, Any]:
    """Return a loss's settings by the transcriptions' names; some write both α and 1 − α down."""
    alpha = loss.get("alpha", 0.0)
    return {
        "adv_weight": alpha,
        "clean_weight": 1 - alpha,
        "mutual_weight": alpha,
        "own_weight": 1 - alpha,
        "variant": "kdiga_ard" if loss.get("adversarial") else "kdiga",
        **{RENAMED.get(name, name): value for name, value in loss.items()},
    }
