"""Results of evaluations: an entry for each (weights, attack), stored in a JSON file."""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from statistics import NormalDist
from typing import Any, get_origin, get_type_hints

from fastpeer.errors import UserError, one_line, shown
from fastpeer.evaluation.by_image import ByImage, read_by_image, write_by_image
from fastpeer.files import check_room, read_text, update_atomically

log = logging.getLogger(__name__)
WARNED = "(!)"
"""Marks an accuracy that is probably too high; a note below the table says why."""


@dataclass(frozen=True)
class Result:
    """Accuracy of one student under one attack.

    Attributes:
        target: label of the weights in tables.
        weights_sha256: checksum of the weight file.
        attack: its name, as `parse_attacks` returns it.
        correct, images: number of images classified correctly, and of all that were attacked.
        total: number of images in the test split.
        epsilon, step_size, seed, batch_size: settings of the attack.
        targets: number of wrong classes that AutoAttack's targeted attacks aim at; None for other attacks.
        dataset, data_sha256: name of the data set, and checksum of its test split's file.
        seconds: duration of the attack.
        torch: version of PyTorch.
        side: height and width of the images in pixels, where they were resized; 0: as prepared.
        non_finite: number of images with logits that are NaN or infinite, or with NaN in PGD's last gradient,
            none of which counts as correct; left out of the file where it is 0.
        pixels: whether the data set has the official pixels; empty: unknown, or nobody's official ones.
        warnings: why the network's robustness may be less than it seems; left out of the file where there are
            none.
        norm: of the ball that the attack stays in: linf, as of older results, or l2.
        broken: how many images each of AutoAttack's attacks broke that ran, and were wrong without one
            ("clean"); left out of the file for other attacks.
        weights_key: which set of weights of a file with several was asked for; empty: the usual one.
        autoattack: who ran AutoAttack's attacks, and on what (`classify_under_autoattack`); empty:
            pyautoattack, as in older results, or another attack.
        mean, std: normalisation inside the network that was asked for; empty: as its run or file records it.
        role: peer, teacher or natural teacher, where such a network was evaluated beside its student; left
            out of the file for students.
        source, source_sha256: label and checksum of the network that the images were made against, where that
            is another; left out of the file where it is none.
        cosines: mean cosine similarities of a tutor's features, by what is compared (`Tutored`); left out of
            the file where there are none.
        worst_class: name, correct and images of the class with the lowest accuracy; left out of the file
            where it is not known, as of older results.
        by_image_file, by_image_sha256: the file in `verdicts_folder` that tells how each image was
            classified, and its checksum; left out where there is none, as of older results.
        by_image: what that file holds, of a result that was just found; not part of the results' file.
    """

    target: str
    weights_sha256: str
    attack: str
    correct: int
    images: int
    total: int
    epsilon: float
    step_size: float
    seed: int
    batch_size: int
    targets: int | None
    dataset: str
    data_sha256: str
    seconds: float
    torch: str
    side: int = 0
    non_finite: int = 0
    pixels: str = ""
    warnings: tuple[str, ...] = ()
    norm: str = "linf"
    weights_key: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    broken: Mapping[str, int] = field(default_factory=dict)
    role: str = ""
    source: str = ""
    source_sha256: str = ""
    cosines: Mapping[str, float] = field(default_factory=dict)
    worst_class: Mapping[str, Any] = field(default_factory=dict)
    by_image_file: str = ""
    by_image_sha256: str = ""
    by_image: ByImage | None = field(default=None, compare=False, repr=False)
    autoattack: str = ""

    @property
    def accuracy(self) -> float:
        """Share of the attacked images that were classified correctly, in %."""
        return 100 * self.correct / self.images

    @property
    def confidence_interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval in %; None where all test images were used.

        Wilson's interval holds near 0 and 100 % too. It ignores that the images are a large part of a finite
        set, and is therefore rather too wide.
        """
        if self.images == self.total:
            return None
        return wilson_interval(self.correct, self.images)

    @property
    def key(self) -> tuple[Any, ...]:
        """What was evaluated, and how; a later result with the same key replaces an earlier one."""
        network = (self.weights_sha256, self.target, self.weights_key, self.mean, self.std)
        source = (self.source, self.source_sha256)  # Two surrogates may have the same weights.
        subject = (*network, *source, self.data_sha256, self.images, self.side)
        attack = (self.attack, self.autoattack)
        return (*subject, *attack, self.norm, self.epsilon, self.step_size, self.seed, self.batch_size)


LEFT_OUT = (
    "non_finite", "warnings", "weights_key", "mean", "std", "broken", "worst_class", "by_image_file",
    "by_image_sha256", "by_image", "role", "source", "source_sha256", "cosines", "autoattack",
)  # fmt: skip
"""Fields of a result that stand in the file only where there is something to tell."""
SPARE = 100_000
"""Bytes that the results of an evaluation may add to a file."""


def check_storable(file: Path) -> None:
    """Make sure that results can be added to a file, without leaving a trace.

    Raises:
        UserError: the file holds anything else, or cannot be written.
    """
    size = len(read_results(file)) and file.stat().st_size
    advice = "evaluate a copy of it in a folder that can be written"
    check_room(file.absolute().parent, file, advice, size + SPARE)


class ResultsWriter:
    """Stores results as they are found; what cannot be written is tried again with the next result.

    Attributes:
        unsaved: results that could not be written yet, by their file.
    """

    def __init__(self) -> None:
        self.unsaved: dict[Path, list[Result]] = {}
        self._reason = ""

    def add(self, file: Path, result: Result) -> None:
        """Store a result; if that fails, keep it and log why."""
        waiting = [*self.unsaved.pop(file, []), result]
        try:
            store_results(file, waiting)
        except UserError as error:
            if not self._reason:
                log.warning("%s; the attacks go on, the table will have the results", error)
            self.unsaved[file], self._reason = waiting, str(error)

    def check(self) -> None:
        """Raise a `UserError` if any results were not stored."""
        if self.unsaved:
            count = sum(map(len, self.unsaved.values()))
            raise UserError(f"{self._reason}; {count} results stand in the table above only")


def store_results(file: Path, results: Iterable[Result]) -> None:
    """Add results to a file, replacing earlier ones with the same key; before, write their `by_image`.

    Another process may add to the file at the same time; both keep theirs.

    Raises:
        UserError: the file holds anything else, or cannot be written.
    """
    new = [_with_file(result, verdicts_folder(file)) for result in results]
    replaced: set[str] = set()

    def added() -> str:
        content = _content(file)
        former = _results(file, content)
        stored = {result.key: result for result in [*former, *new]}
        replaced.update(_files(former) - _files(stored.values()))
        return _text(content | {"results": [_entry(result) for result in stored.values()]})

    update_atomically(file, added)
    for name in replaced:
        # Its name alone: the file may be a stranger's, and lead anywhere.
        (verdicts_folder(file) / Path(name).name).unlink(missing_ok=True)


def store_entry(file: Path, section: str, entry: Mapping[str, Any], key: Sequence[str]) -> None:
    """Add what is no `Result` to a section of a file of results, in place of an entry with the same `key`.

    Args:
        file: of results, which stay as they are.
        section: its name in the file.
        entry: as JSON can write it.
        key: names of the entry's fields that say what was evaluated, and how.

    Raises:
        UserError: the file holds anything else, or cannot be written.
    """
    new = json.loads(json.dumps(entry))

    def added() -> str:
        content = _content(file)
        _results(file, content)
        former = content.get(section, [])
        if not isinstance(former, list) or not all(isinstance(other, dict) for other in former):
            raise UserError(f"{file}: not results of fastpeer eval ({section} must be a list): move it away")
        others = [other for other in former if any(other.get(name) != new[name] for name in key)]
        return _text(content | {section: [*others, new]})

    update_atomically(file, added)


def verdicts_folder(file: Path) -> Path:
    """Return the folder for what each image fell to, beside a file of results."""
    own = file.name.removesuffix("results.json")
    return file.with_name(f"{own}verdicts")


def cell(result: Result) -> str:
    """Format an accuracy, with its interval and marks."""
    text = f"{result.accuracy:.2f}"
    if result.confidence_interval is not None:
        low, high = result.confidence_interval
        text += f" [{low:.1f}, {high:.1f}]"
    if result.non_finite:
        text += f", {result.non_finite} non-finite"
    return f"{text} {WARNED}" if result.warnings else text


def images_of(file: Path, result: Result) -> ByImage:
    """Return how each image was classified, as found just now or stored beside a file of results.

    Raises:
        UserError: it was not stored, or is missing or damaged.
    """
    if result.by_image is not None:
        return result.by_image
    if not result.by_image_file:
        raise UserError(
            f"{file} does not tell how {result.target} classified each image under {result.attack}: it was"
            " written by an older fastpeer; evaluate again"
        )
    return read_by_image(verdicts_folder(file) / Path(result.by_image_file).name, result.by_image_sha256)


def is_usual(result: Result) -> bool:
    """Whether a result may stand beside those of other networks: on all test images, in L-infinity 8/255.

    Images are made against the network itself, by PGD in steps of 2/255.
    """
    if result.images < result.total or result.source:
        return False
    ball = (result.norm, result.epsilon) == ("linf", 8 / 255)
    steps = not result.attack.startswith("pgd") or result.step_size == 2 / 255
    return result.attack == "clean" or (ball and steps)


def usual_of_student(results: Iterable[Result]) -> dict[str, Result]:
    """Return, by attack, the newest usual results of the best student, else of any."""
    usual = [result for result in results if is_usual(result) and not result.role]
    best = [result for result in usual if result.target.endswith(" best")]
    return {result.attack: result for result in best or usual}


def _with_file(result: Result, folder: Path) -> Result:
    """Return a result that names the file, written here, of how each image was classified."""
    if result.by_image is None:
        return result
    key = sha256(repr(result.key).encode()).hexdigest()[:8]
    name, checksum = write_by_image(result.by_image, folder, f"{result.attack}-{key}")
    return replace(result, by_image_file=name, by_image_sha256=checksum)


def _files(results: Iterable[Result]) -> set[str]:
    return {result.by_image_file for result in results if result.by_image_file}


def wilson_interval(correct: int, images: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval for an accuracy in %."""
    # By hand: importing scipy.stats takes longer than everything else before a short evaluation.
    share, weight = correct / images, NormalDist().inv_cdf(0.975) ** 2 / images
    half = math.sqrt(weight * (share * (1 - share) + weight / 4))
    low, high = ((share + weight / 2 + side) / (1 + weight) for side in (-half, half))
    return 100 * max(low, 0.0), 100 * min(high, 1.0)


def _entry(result: Result) -> dict[str, Any]:
    plain = asdict(replace(result, by_image=None))
    entry = {**plain, "accuracy": result.accuracy, "interval95": result.confidence_interval}
    return {name: value for name, value in entry.items() if value or name not in LEFT_OUT}


def _result(entry: dict[str, Any]) -> Result:
    fields: dict[str, Any] = {
        name: tuple(value) if type(value) is list else value
        for name, value in entry.items()
        if name not in ("accuracy", "interval95")
    }
    result = Result(**fields)
    _check(result)
    return result


def _check(result: Result) -> None:
    """Raise a ValueError for what no evaluation finds: a file may hold anything."""
    for name, kind in get_type_hints(Result).items():
        value = getattr(result, name)
        plain = get_origin(kind) if get_origin(kind) in (tuple, Mapping) else kind
        # An epsilon of 1 may stand there as a whole number.
        if not isinstance(value, (int, float) if kind is float else plain):
            raise ValueError(f"{name} is {shown(value)}")
    if not all(isinstance(number, (int, float)) for number in result.mean + result.std):
        raise ValueError("mean and std must be numbers")
    if not 0 <= result.correct <= result.images <= result.total or result.images == 0:
        raise ValueError(f"{shown(result.correct)} of {shown(result.images)} images are correct")


def read_results(file: Path) -> list[Result]:
    """Return the results in a file; empty if there is no file.

    Raises:
        UserError: the file holds anything else, or cannot be read.
    """
    return _results(file, _content(file))


def _content(file: Path) -> dict[str, Any]:
    """Return what a file of results holds, or would hold without any.

    Raises:
        UserError: the file holds no table in JSON, or cannot be read.
    """
    if not file.exists():
        return {"results": []}
    try:
        return dict(json.loads(read_text(file)))
    except (OSError, ValueError, TypeError) as error:
        raise _foreign(file, error) from None


def _results(file: Path, content: Mapping[str, Any]) -> list[Result]:
    try:
        return [_result(entry) for entry in content["results"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _foreign(file, error) from None


def _foreign(file: Path, error: Exception) -> UserError:
    return UserError(f"{file}: not results of fastpeer eval ({one_line(error)}): move it away")


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps({"format": 1, "split": "test", **content}, indent=1) + "\n"
