"""`fastpeer export`: a finished network as files for other programs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from tyro.conf import Positional, arg

from fastpeer.cli.arguments import parse
from fastpeer.cli.pytorch import import_pytorch
from fastpeer.config import check_at_least, check_normalization
from fastpeer.errors import UserError
from fastpeer.models.pixel_range import check_pixel_range
from fastpeer.printing import FigureTable, Row, print_line, print_tables, print_warning
from fastpeer.run_folder import newest_run

if TYPE_CHECKING:
    from fastpeer.data.dataset import PreparedDataset
    from fastpeer.evaluation.opening import OpenedNetwork, Wanted
    from fastpeer.export.folder import CheckImages, Compared


@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Write a finished network for other programs; each file is opened again and compared."""

    run: Annotated[Positional[Path | None], arg(metavar="[RUN]")] = None
    """A run, a checkpoint's folder or a file with weights; default: the newest run in runs/."""
    to: Annotated[Path, arg(metavar="DIR")]
    """The folder to make."""
    formats: str = "all"
    """Comma-separated: safetensors, pytorch (a plain file with its network), program (torch.export), onnx,
    robustbench; all: those that can be written."""
    checkpoint: str = "best"
    """Of a run: last, swa, best or best-swa."""
    license: str = ""
    """Licence of the weights, such as mit or cc-by-4.0, for the model card."""
    data: Annotated[Path | None, arg(metavar="DIR")] = None
    """A prepared data set to compare on; default: the run's, or random images if that is gone."""
    examples: int = 32
    """Number of test images to compare on."""
    model: str = ""
    """Network of a weight file that does not tell: a shipped one, timm:NAME or module:Class."""
    classes: int = 0
    """Number of classes of a weight file that does not tell."""
    size: int = 0
    """Side of the images, where the run or file does not tell."""
    weights_key: Annotated[str, arg(metavar="KEY")] = ""
    """Which weights of a file that holds several sets of them."""
    mean: tuple[float, ...] = ()
    """Normalisation within the network: 1 or 3 numbers; default: what its run or file says."""
    std: tuple[float, ...] = ()
    """Divides each channel after that."""
    force: bool = False
    """Replace the export that --to already holds."""
    force_settings: bool = False
    """Export a run's weights although its config.toml now says other things of their networks."""
    trust: bool = False
    """Import a class of your own that a run names; otherwise only what this line names. It runs code."""
    quiet: bool = False
    """Print nothing but warnings and errors."""

    def __post_init__(self) -> None:
        check_normalization(self.mean, self.std)
        check_pixel_range(self.mean, self.std)
        check_at_least(3, self, "examples")
        check_at_least(0, self, "classes", "size")


def export_command(words: Sequence[str]) -> None:
    """Export what the words behind `fastpeer export` name, and print how near each format is.

    Raises:
        UserError: whatever the user can fix.
    """
    arguments = parse(ExportArguments, words, "fastpeer export")
    # Imported here: torch takes a second that --help and errors in the words need not wait for.
    import_pytorch()
    from fastpeer.evaluation.opening import open_network
    from fastpeer.export.folder import export, refuse_unless_free
    from fastpeer.export.formats import parse_formats

    refuse_unless_free(arguments.to, arguments.force)
    opened = open_network(arguments.run or newest_run().path, _wanted(arguments))
    formats, left_out = parse_formats(arguments.formats, opened)
    dataset = _dataset(arguments, opened)
    check = _check_images(arguments, opened, dataset)
    names = dataset.classes if dataset else ()
    compared = export(opened, formats, arguments.to, check, arguments.license, names, arguments.force)
    _print(arguments, opened, compared, check, left_out)


def _wanted(arguments: ExportArguments) -> "Wanted":
    from fastpeer.evaluation.opening import Wanted

    return Wanted(
        checkpoint=arguments.checkpoint, model=arguments.model, classes=arguments.classes,
        size=arguments.size, mean=arguments.mean, std=arguments.std, weights_key=arguments.weights_key,
        force_settings=arguments.force_settings,
    )  # fmt: skip


def _dataset(arguments: ExportArguments, opened: "OpenedNetwork") -> "PreparedDataset | None":
    from fastpeer.data.dataset import open_dataset

    if arguments.data is None:
        return opened.dataset()
    side = opened.size[0] if opened.size else 0
    dataset = open_dataset(arguments.data)
    dataset = dataset.seen_at(side if dataset.encoding == "jpeg" else 0, "--size")
    if len(dataset.classes) != opened.classes:
        raise UserError(f"{arguments.data} must have {opened.classes} classes, got {len(dataset.classes)}")
    return dataset


def _check_images(
    arguments: ExportArguments, opened: "OpenedNetwork", dataset: "PreparedDataset | None"
) -> "CheckImages":
    """Return test images, evenly spread, or random ones where there are none."""
    import numpy as np
    import torch

    from fastpeer.data.host import HostSource
    from fastpeer.data.split import open_split
    from fastpeer.data.stream import spread
    from fastpeer.export.folder import CheckImages

    count = arguments.examples
    if dataset is None:
        side = opened.size or (32, 32)
        return CheckImages(torch.rand(count, 3, *side, generator=torch.Generator().manual_seed(0)), None)
    source = HostSource(open_split(dataset, "test", count), torch.device("cpu"))
    order = np.resize(spread(np.arange(len(source.labels)), count), max(3, min(count, len(source.labels))))
    batch = next(source.batches(order, None, torch.float32))
    return CheckImages(batch.images.contiguous(), batch.labels)


def _print(
    arguments: ExportArguments,
    opened: "OpenedNetwork",
    compared: "Mapping[str, Compared]",
    check: "CheckImages",
    left_out: Mapping[str, str],
) -> None:
    from fastpeer.evaluation.opening import label_of

    console = Console(quiet=arguments.quiet)
    count, labelled = len(check.images), check.labels is not None
    kind = "test" if labelled else "random"
    print_line(
        console, f"{arguments.to}: {label_of(opened)}, each format opened again on {count} {kind} images"
    )
    headings = ("format", "largest difference of logits", "other classes", *(["correct"] if labelled else []))
    rows = [Row(name, _figures(found, count)) for name, found in compared.items()]
    print_tables(console, [FigureTable(headings, [rows])])
    if not labelled:
        print_line(console, "note: the run's test images are not there; --data DIR compares on real ones")
    if "robustbench" in compared:
        print_line(console, "model_info.json: what is empty is yours to fill in, or not measured yet by eval")
    for name, reason in left_out.items():
        print_warning(console, f"left out {name}: {reason}")


def _figures(found: "Compared", count: int) -> list[str]:
    correct = [] if found.correct is None else [f"{found.correct} of {count}"]
    return [f"{found.difference:.1e}", str(found.changed), *correct]
