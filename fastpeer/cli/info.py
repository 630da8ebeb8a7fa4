"""`fastpeer info`: what is known of a weights file, a run or a data set."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional, arg

from fastpeer.cli.arguments import parse
from fastpeer.cli.pytorch import import_pytorch
from fastpeer.cli.summary import NAMES
from fastpeer.errors import UserError, brief, counted, printable
from fastpeer.links import student_weights
from fastpeer.models.pixel_range import format_normalization
from fastpeer.printing import print_line
from fastpeer.provenance import UNKNOWN, provenance_rows
from fastpeer.run_folder import RunFolder, enclosing_run, network_name, newest_run, one_of_its_runs

if TYPE_CHECKING:
    from torch import Tensor

    from fastpeer.models.weight_facts import WeightFacts

Row = tuple[str, str]
"""What is told, and what is known of it."""


@dataclass(frozen=True, kw_only=True)
class InfoArguments:
    """Tell what is known of weights, a run or prepared data."""

    path: Annotated[Positional[Path | None], arg(metavar="[PATH]")] = None
    """A file with weights, or the folder of a checkpoint, a run or a data set; default: the newest run in
    runs/."""
    weights_key: Annotated[str, arg(metavar="KEY")] = ""
    """Which weights of a file that holds several sets of them."""
    trust: bool = False
    """Import the method of your own that a run's config.toml names; it runs code."""


def info_command(words: Sequence[str]) -> None:
    """Print what is known of what the words behind `fastpeer info` name.

    Raises:
        UserError: there are no weights, or they cannot be read.
    """
    arguments = parse(InfoArguments, words, "fastpeer info")
    newest = arguments.path is None
    path = arguments.path or newest_run().path
    try:
        rows = list(_rows(path, arguments.weights_key))
    # Files may hold anything in the place of what is told of them.
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise UserError(f"{path}: damaged or not written by fastpeer ({brief(error)})") from None
    chosen = [("chosen", "the newest run in runs/, as none was named")] if newest else []
    _print([*chosen, *rows], Console())


def _rows(path: Path, key: str) -> Iterator[Row]:
    run = RunFolder(path)
    file = student_weights(path)
    if run.exists:
        yield from _rows_of_run(run)
    elif (path / "dataset.json").is_file():
        yield from _rows_of_data(path)
    elif file is None and path.is_dir():
        expected = "neither a run, a checkpoint, a prepared data set nor a file with weights"
        raise UserError(f"{path}: {expected}{one_of_its_runs(path)}")
    else:
        # A file that is missing is named by what reads it.
        yield from _rows_of_file(file or path, key)


def _print(rows: Sequence[Row], console: Console) -> None:
    if not console.is_terminal:
        # Whole lines, for programs.
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print_line(console, f"{name:<{width}}  {value}")
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(printable(name)), Text(printable(value)))
    console.print(table)


def _rows_of_file(file: Path, key: str) -> Iterator[Row]:
    # Imported here: torch takes a second that --help and errors in the words need not wait for.
    import_pytorch()
    from fastpeer.models.weight_facts import recorded_facts
    from fastpeer.models.weight_files import read_weights

    found = read_weights(file, key)
    facts, run = recorded_facts(file), enclosing_run(file)
    config = run.read_config() if run else None
    data = run.read_facts()["data"] if run else {}
    yield "file", str(file)
    if found.key:
        yield "weights", "".join([found.key, *(f"; others: --weights-key {other}" for other in found.others)])
    yield "run", str(run.path) if run else "none"
    yield "network", facts.network or (network_name(config, file) if config else UNKNOWN)
    yield "classes", str(facts.classes or data.get("classes") or UNKNOWN)
    yield "size", _parameters(found.tensors)
    yield "normalisation", _normalization(file, found.tensors)
    yield "method", facts.method or (config.method if config else UNKNOWN)
    yield "data", _data({"name": facts.dataset, "size": facts.size} if facts.dataset else data)
    yield from _progress_of_file(file, facts)
    yield "written by", f"fastpeer {facts.version}" if facts.version else UNKNOWN


def _parameters(tensors: "Mapping[str, Tensor]") -> str:
    """Count the numbers that are trained, and name the first tensor that is not finite."""
    from fastpeer.models.weight_names import normalization_names

    fixed = {*normalization_names(tensors)}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    trained = [
        tensor for name, tensor in tensors.items() if name not in fixed and not name.endswith(statistics)
    ]
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in trained})
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    fault = f"; NaN or infinity in {broken[0]}" if broken else ""
    return f"{sum(tensor.numel() for tensor in trained):,} parameters ({', '.join(dtypes)}){fault}"


def _normalization(file: Path, tensors: "Mapping[str, Tensor]") -> str:
    from fastpeer.models.weights import normalization_beside

    recorded = normalization_beside(file, tensors)
    return format_normalization(recorded) if recorded else "none recorded"


def _progress_of_file(file: Path, facts: "WeightFacts") -> Iterator[Row]:
    """Tell how long the weights were trained, and the accuracies that their checkpoint records for them."""
    state = _state(file.parent)
    name = {"student": "last", "swa": "swa"}.get(file.stem, "")
    entry = state.get("selected") if file.stem == "student" else None
    entry = entry or _mapping(state.get("summary")).get(name)
    step = facts.step or _mapping(state.get("position")).get("step")
    yield "trained for", _steps(step)
    if isinstance(entry, Mapping):
        yield "accuracy in %", _accuracies(entry)


def _rows_of_run(run: RunFolder) -> Iterator[Row]:
    config, facts = run.read_config(), run.read_facts()
    state = _state(run.checkpoints / "last")
    yield "run", str(run.path)
    yield "method", config.method
    yield from _networks(run, sorted(config.table.trained, key=lambda name: name != "student"))
    yield "classes", str(facts["data"].get("classes", UNKNOWN))
    mean, std = config.model.mean, config.model.std
    yield "normalisation", format_normalization((mean, std)) if mean else "none"
    yield "data", _data(facts["data"])
    for role, teacher in _mapping(facts.get("teachers")).items():
        yield role.replace("_", " "), f"{teacher.get('network', UNKNOWN)}, {teacher.get('file', UNKNOWN)}"
    position = _mapping(state.get("position"))
    if position:
        epoch = position.get("epoch")
        done = f"{epoch if isinstance(epoch, int) else UNKNOWN} of {counted(config.train.epochs, 'epoch')}"
        yield "trained for", f"{_steps(position.get('step'))}, {done}"
    else:
        yield "trained for", "no checkpoint yet"
    summary = _mapping(state.get("summary"))
    for name, entry in summary.items():
        yield NAMES.get(name, name), _accuracies(entry)
    images = "test images" if config.selection.split == "test" else "held-out training images"
    measured = "in %" if summary else "none yet; they will be measured"
    yield "accuracies", f"{measured}, on {images} (selection.split = {config.selection.split})"
    yield "precision", f"{config.precision} on {facts.get('device', UNKNOWN)}, seed {config.seed}"
    versions = _mapping(facts.get("versions"))
    known = [f"{name} {version}" for name, version in versions.items() if version]
    yield "versions", ", ".join(known) or UNKNOWN
    yield from provenance_rows(facts)


def _rows_of_data(folder: Path) -> Iterator[Row]:
    from fastpeer.data.dataset import open_dataset
    from fastpeer.data_prep.sources.official import OFFICIAL_SETS

    dataset = open_dataset(folder)
    height, width = dataset.size
    yield "data", str(folder)
    yield "name", dataset.name
    yield "classes", str(len(dataset.classes))
    yield "images", ", ".join(f"{split['count']} {name}" for name, split in dataset.splits.items())
    yield "size", "many, as JPEG" if dataset.encoding == "jpeg" else f"{height}x{width}"
    if dataset.pixels or dataset.name in OFFICIAL_SETS:
        yield "pixels", dataset.pixels or UNKNOWN


def _networks(run: RunFolder, names: Sequence[str]) -> Iterator[Row]:
    from fastpeer.models.weight_files import read_weights

    config = run.read_config()
    for name in names:
        file = run.checkpoints / "last" / f"{name}.safetensors"
        count = f", {_parameters(read_weights(file).tensors)}" if file.is_file() else ""
        yield name, f"{network_name(config, file)}{count}"


def _data(data: Mapping[str, Any]) -> str:
    size = data.get("size")
    images = f" ({size[0]}x{size[1]})" if size else ""
    folder = f", {data['folder']}" if data.get("folder") else ""
    return f"{data.get('name') or UNKNOWN}{images}{folder}"


def _accuracies(entry: Mapping[str, Any]) -> str:
    figures = ", ".join(f"{name} {value:.2f}" for name, value in entry.items() if name != "epoch")
    return f"{figures} (epoch {entry['epoch']})" if "epoch" in entry else figures


def _state(folder: Path) -> Mapping[str, Any]:
    """Return a checkpoint's state; empty beside weights that belong to none."""
    import_pytorch()
    from fastpeer.checkpoint import load_state

    try:
        return load_state(folder)
    except UserError:
        return {}


def _steps(number: object) -> str:
    """Return how many steps; a stranger's checkpoint may hold anything in the number's place."""
    return counted(number, "step") if isinstance(number, int) and number else UNKNOWN


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
