"""Every setting of a training run, as frozen dataclasses.

The same names are TOML keys (`[attack] steps = 10`) and flags (`--attack.steps 10`).
Unless a docstring says otherwise, a default is the released PeerAiD value for ResNet-18 on CIFAR-10.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro.conf

from fastpeer.config.attack import AttackConfig
from fastpeer.config.checks import check_at_least, check_batch_size
from fastpeer.config.distances import LARGEST_SIZE
from fastpeer.errors import UserError
from fastpeer.methods import LossSettings, Method, build_table, default_loss
from fastpeer.models import check_model_name
from fastpeer.models.names import class_path
from fastpeer.models.pixel_range import check_normalization

Precision = Literal["fp64", "fp32", "tf32", "bf16", "fp16"]
Split = Literal["val", "test"]
Switch = Literal["auto", "on", "off"]
AutoAttackWay = Literal["fast", "tf32", "plain", "official"]
"""Who runs AutoAttack's attacks, and on what: see `classify_under_autoattack`."""
Residency = Literal["auto", "host", "device"]
Reader = Literal["auto", "numpy", "ffcv"]
LoggerName = Literal["tensorboard", "csv", "wandb", "mlflow"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which networks learn."""

    student: str = "resnet18"
    """The network that is to become robust."""
    peer: str = "resnet18"
    """The tutor that learns beside it."""
    mean: tuple[float, ...] = ()
    """Subtracted from each channel inside the networks: images stay in [0, 1] outside; none: nothing is."""
    std: tuple[float, ...] = ()
    """Divides each channel after that."""

    def __post_init__(self) -> None:
        _check_networks(self, "student", "peer")
        check_normalization(self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """A network that is trained already, and stays as it is."""

    weights: str = ""
    """A run of fastpeer (its best student is taken), a checkpoint in one, or a file with weights."""
    weights_key: str = ""
    """Which weights of a file with several sets of them, such as state_dict_ema."""
    network: str = ""
    """Which network a file holds; default: the run's student, or the network that is trained."""
    mean: tuple[float, ...] = ()
    """Normalisation inside it, as in [model]; default: what its run or file says."""
    std: tuple[float, ...] = ()
    """Divides each channel after that."""

    def __post_init__(self) -> None:
        if self.network:
            _check_networks(self, "network")
        check_normalization(self.mean, self.std)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how."""

    dataset: str = ""
    """Name of a prepared data set: its folder is data/NAME unless --data says otherwise."""
    augment: bool = True
    """Random crop (4 zero pixels of padding) and horizontal flip of the training images. Of a data set kept
    as JPEG: a random part of each image, resized, and the flip; without it the centre."""
    size: int = 0
    """Side of the images the networks see, for data sets kept as JPEG; 0: as prepared."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest part of an image's area that a random part of a JPEG takes."""
    shuffle: bool = True
    """New order of the training images each epoch."""
    drop_last: bool = False
    """Leave out the last, partial batch of an epoch (the released code keeps it)."""
    residency: Residency = "auto"
    """Images are decoded for each batch (host), or once and kept where they are needed (device). auto is
    device on a GPU if they take at most a quarter of its free memory. The batches are the same. Data sets
    kept as JPEG stay on the host."""
    reader: Reader = "auto"
    """What reads the images. auto decodes JPEGs by FFCV's C functions, and reads uncompressed images with
    NumPy, as numpy does, which is for these alone; ffcv compiles for seconds first. All give the same."""

    def __post_init__(self) -> None:
        check_at_least(0, self, "size")
        if self.size > LARGEST_SIZE:
            raise ValueError(f"size must be {LARGEST_SIZE} or less, got {self.size}")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale must be two increasing parts up to 1, got {list(self.crop_scale)}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """SGD, the same for all trained networks."""

    lr: float = 0.1
    """Learning rate of the first epochs."""
    momentum: float = 0.9
    """Momentum."""
    weight_decay: float = 2e-4
    """Weight decay, on all parameters."""
    milestones: tuple[int, ...] = (214, 259, 284)
    """Epochs, counted from 0, from which on the learning rate is a tenth of what it was."""
    freeze: tuple[str, ...] = ()
    """Parameters that keep their first values, by patterns such as 'student.conv1*' 'peer.layer1.*': they get
    no gradient, weight decay or momentum. BatchNorm's running statistics are not parameters,
    and still move."""

    def __post_init__(self) -> None:
        check_at_least(0, self, "lr", "momentum", "weight_decay")
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=0) < 0:
            raise ValueError(f"milestones must be increasing epochs, got {list(self.milestones)}")


@dataclass(frozen=True, kw_only=True)
class SwaConfig:
    """Stochastic weight averaging of the student, one model an epoch."""

    enabled: bool = True
    """Keep an averaged student beside the trained one."""
    start: int = -1
    """First epoch (from 0) whose end is averaged; -1: the first of optim.milestones."""

    def __post_init__(self) -> None:
        check_at_least(-1, self, "start")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, and how many images at once."""

    batch_size: int = 128
    """Images in a step."""
    epochs: int = 300
    """Passes over the training images."""
    max_steps: int = 0
    """Stop after this many steps in all, wherever the epoch is; 0: no limit."""
    deterministic: bool = False
    """On CUDA, let cuDNN use only algorithms that add in a fixed order, and not search for the fastest: the
    same command then gives the same bits on the same GPU and versions. Slower; a CPU does so anyway."""
    on_nonfinite: Literal["stop", "rollback"] = "stop"
    """What to do when a loss or weight is infinite or NaN: end, or go back to the last checkpoint and on with
    a lower learning rate."""
    rollbacks: int = 3
    """How often a run may go back."""
    rollback_rate: float = 0.5
    """What the learning rate is multiplied by from each time on."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "batch_size", "epochs")
        check_batch_size(self.batch_size)
        check_at_least(0, self, "max_steps", "rollbacks")
        if not 0 < self.rollback_rate <= 1:
            raise ValueError(f"rollback_rate must be above 0 and at most 1, got {self.rollback_rate}")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the state of a run is saved, besides at the end of each epoch."""

    every_minutes: float = 30.0
    """Also within an epoch, once the last checkpoint is so old; 0: not."""
    keep_every: int = 0
    """Keep the checkpoint of every so many epochs as checkpoints/epoch-N; 0: of none."""

    def __post_init__(self) -> None:
        check_at_least(0, self, "every_minutes", "keep_every")


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How the best epoch is chosen: highest PGD accuracy of the student at an epoch's end."""

    split: Split = "val"
    """On a held-out part of the training images (val), or on the test images as the paper does (test)."""
    fraction: float = 0.1
    """How much of each class is held out for val: the last images of the class, in the data set's order."""
    examples: int = 0
    """Use only this many images of the split, evenly spread; 0: all."""
    steps: int = 10
    """PGD steps; norm, epsilon and step size are the attack's."""
    every: int = 1
    """Evaluate at the end of every so many epochs, and of the last one."""
    batch_size: int = 0
    """Images evaluated at once; 0: as many as in a training step, for which the attack is compiled."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "every", "steps")
        check_at_least(0, self, "examples", "batch_size")
        check_batch_size(self.batch_size)
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {self.fraction}")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Parts of the fast training step; each leaves the result as it is, up to rounding.

    auto takes what is known to be faster on the device, and the run logs its choice; on insists, but falls
    back with a warning where a part is not available.
    """

    fold: Switch = "auto"
    """Attack a copy of the student whose BatchNorm is folded into its convolutions."""
    chain: Switch = "auto"
    """Run the folded student forward and back as an explicit chain, without autograd."""
    merge: Switch = "auto"
    """Train the student on adversarial and clean images as one batch, with BatchNorm statistics of each."""
    compile: Switch = "auto"
    """torch.compile the attack, and the forwards of student and peer as one region."""
    graph: Switch = "auto"
    """Replay the whole step as one CUDA graph."""
    kernels: Switch = "auto"
    """Triton kernels in place of PyTorch's for loss, attack update, folding and noise."""
    convolutions: Switch = "auto"
    """Run the attack's 3×3 convolutions at stride 1, and whatever surrounds each, in one Triton kernel; the
    attack is then not compiled."""
    other_convolutions: Switch = "auto"
    """With convolutions, run those of 1×1 and those at stride 2 by that kernel too."""
    sign_bits: Switch = "auto"
    """With convolutions, write a bit for each value, whether a ReLU let it through, and read these on the way
    back in place of the values; the kernels of batchnorm do so too, where a sum comes before the ReLU."""
    stem: Switch = "auto"
    """Run the first convolution of a chain by kernels of its own; the attack is not compiled then."""
    stem_step: Switch = "auto"
    """With stem, take an L-infinity attack's step in the kernel that computes the gradient at the pixels."""
    head: Switch = "auto"
    """Run a chain's average pooling, classifier and loss, forward and back, in one Triton kernel; the attack
    is not compiled then."""
    batchnorm: Switch = "auto"
    """Run BatchNorm, sum and ReLU of the training passes as one kernel, and do not compile these passes."""
    streams: Switch = "auto"
    """Run the peer beside the student on a CUDA stream of its own; each is compiled by itself then."""
    double_backward: Switch = "auto"
    """Take the second derivative of KDIGA's loss through operators that compute no more than it needs."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written and shown while training."""

    every: int = 50
    """Steps between two lines of metrics.jsonl."""
    seconds: float = 30.0
    """Losses and speed are also shown, but not written, after the first step and then at least every so many
    seconds; 0: only with the lines of metrics.jsonl."""
    to: tuple[LoggerName, ...] = ("tensorboard",)
    """Where the numbers of metrics.jsonl go too: tensorboard, csv, wandb, mlflow, or nowhere else. The last
    two are extras: pip install 'fastpeer[wandb]' 'fastpeer[mlflow]'."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "every")
        check_at_least(0, self, "seconds")
        if len(set(self.to)) < len(self.to):
            raise ValueError(f"to must hold each name once, got {', '.join(self.to)}")


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What is measured over the epochs beside the training, which it leaves as it is, to the last bit."""

    cross_robustness: bool = False
    """Record the accuracies of student, peer and teachers on each other's adversarial examples, on training
    and on selection images: a few per cent of an epoch's time (the log says how much)."""
    images: int = 500
    """Images of each, evenly spread and the same in all epochs; 0: all."""
    steps: int = 10
    """PGD steps; norm, epsilon and step size are the attack's."""
    every: int = 1
    """At the end of every so many epochs, and of the last one."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "steps", "every")
        check_at_least(0, self, "images")


@dataclass(frozen=True, kw_only=True)
class PaperConfig:
    """What the paper reports for a recipe's row, in per cent; the evaluation prints it beside its own."""

    row: str
    """Table and row, for people."""
    dataset: str
    """Name of the data set the figures hold for."""
    clean: float
    """Accuracy on clean images."""
    fgsm: float
    """Accuracy under FGSM."""
    pgd20: float
    """Accuracy under PGD-20."""
    aa: float
    """Accuracy under AutoAttack."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything needed to run a training again."""

    method: Annotated[str, tyro.conf.arg(metavar="NAME")] = "peeraid"
    """What is learnt, such as natural, trades, rslad or peeraid (docs/methods.md has all), or package.module
    of a method of your own. With a shipped recipe, that of this method is taken, where there is one."""
    seed: int = 0
    """Of the initial weights, the order, the augmentation and the attack's noise."""
    precision: Precision = "fp32"
    """fp64 and fp32 compute in that format; tf32 allows CUDA to round float32 products to TF32; bf16 and fp16
    autocast to that format, and allow TF32 outside of it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The robust teacher, for the methods that have one."""
    natural_teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The teacher that was trained without an attack, for the methods that have two."""
    data: DataConfig = field(default_factory=DataConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    loss: LossSettings = field(default_factory=LossSettings)
    """The method's own settings; by default what it says itself."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    swa: SwaConfig = field(default_factory=SwaConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    log: LogConfig = field(default_factory=LogConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    paper: Annotated[PaperConfig | None, tyro.conf.Suppress, tyro.conf.Fixed] = None
    """The paper's figures for this recipe; not a flag."""

    def __post_init__(self) -> None:
        check_at_least(0, self, "seed")
        if self.seed >= 1 << 63:
            raise ValueError(f"seed must be less than 2^63, got {self.seed}")
        if type(self.loss) is LossSettings:
            object.__setattr__(self, "loss", default_loss(self.method))

    @property
    def table(self) -> Method:
        """The method's table, filled in."""
        return build_table(self.method, self.loss)

    @property
    def own_code(self) -> list[str]:
        """Classes and methods of the user's own, by name: importing them runs code."""
        networks = (self.model.student, self.model.peer, self.teacher.network, self.natural_teacher.network)
        methods = [self.method] if "." in self.method else []
        return [*methods, *(name for name in networks if class_path(name))]

    @property
    def swa_start(self) -> int | None:
        """First epoch whose student is averaged; None where none is."""
        if not self.swa.enabled:
            return None
        if self.swa.start >= 0:
            return self.swa.start
        return self.optim.milestones[0] if self.optim.milestones else None


def teacher_words(role: str) -> str:
    """Return how people call a teacher: teacher or natural teacher."""
    return role.replace("_", " ")


def teacher_flag(role: str) -> str:
    """Return the flag that names a teacher's weights; those of its settings begin with it."""
    return f"--{role.replace('_', '-')}"


def _check_networks(config: Any, *names: str) -> None:
    for name in names:
        try:
            check_model_name(getattr(config, name))
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
