"""The model card of an export: what the network is, what was measured of it, and what that does not say."""

from collections.abc import Iterator, Mapping, Sequence

from fastpeer import __version__
from fastpeer.config import format_fraction
from fastpeer.errors import printable
from fastpeer.evaluation.costs import parameter_count
from fastpeer.evaluation.opening import OpenedNetwork, label_of, results_of
from fastpeer.evaluation.results import Result, cell
from fastpeer.evaluation.table import images_text
from fastpeer.models.pixel_range import format_normalization
from fastpeer.table_formats import markdown

CARD = "README.md"
MOST_CLASSES = 20
"""Class names that the card lists; classes.json has all."""
LONGEST = 60

USE = """\
For classifying images like those it was trained on, and for studying robustness to small perturbations. It is
not meant for decisions about people or for safety without an evaluation on the images and the attacks of that
use."""

LIMITS = """\
- The accuracies hold for the test images named above. For other images, cameras or classes nothing is known.
- Robust accuracy holds for the attacks and the radius named above; larger or other changes of an image
  (rotations, patches, corruptions, other norms) are not covered, and stronger attacks may find more.
- Images of no known class get a class too, often with a high score."""


def model_card(opened: OpenedNetwork, files: Mapping[str, str], license: str, classes: Sequence[str]) -> str:
    """Return the text of README.md; see `fastpeer.export.folder.export` for the arguments."""
    results = results_of(opened)
    blocks = [
        "\n".join(_front_matter(license)),
        f"# {markdown(label_of(opened))}",
        _what(opened),
        _files(files),
        "## Measured",
        *_measured(opened, results),
        "## Intended use",
        USE,
        "## Limits",
        "\n".join([LIMITS, *_warnings(results)]),
        "## Classes",
        _classes(opened, classes),
        "## Licence",
        _licence(license),
    ]
    return "\n\n".join(blocks) + "\n"


def _front_matter(license: str) -> Iterator[str]:
    yield "---"
    yield f"license: {_yaml(license or 'unknown')}"
    yield "pipeline_tag: image-classification"
    yield "tags: [adversarial-robustness, fastpeer]"
    yield "---"


def _yaml(text: str) -> str:
    """Write a text as YAML reads it back, whatever is in it."""
    escaped = printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return text if text.replace("-", "").replace(".", "").isalnum() else f'"{escaped}"'


def _what(opened: OpenedNetwork) -> str:
    config = opened.target.config
    count = parameter_count(opened.network)
    size = f"{opened.size[1]}x{opened.size[0]}" if opened.size else "unrecorded size"
    method = f" trained by {config.method}" if config else ""
    data = f" on {opened.data_name}" if opened.data_name else ""
    inside = format_normalization(opened.normalization) if opened.normalization[0] else "none"
    attack = ""
    if config and config.table.seeks_robustness:
        ball = "L-infinity" if config.attack.norm == "linf" else "L2"
        attack = f", against {ball} perturbations of {format_fraction(config.attack.epsilon)}"
    return (
        f"{markdown(opened.name)} with {count:,} parameters{markdown(method + data)}{attack}. It takes RGB"
        f" images (batch, 3, height, width) of {size} in [0, 1], as float32, and returns {opened.classes}"
        f" logits. Normalisation inside: {inside}."
    )


def _files(files: Mapping[str, str]) -> str:
    rows = [f"| `{file}` | {use} |" for file, use in files.items()]
    return "\n".join(["| file | what it is |", "| --- | --- |", *rows])


def _measured(opened: OpenedNetwork, results: Sequence[Result]) -> Iterator[str]:
    if not results:
        run, file = opened.target.run, opened.target.weights.name
        where = run.path.name if run else f"{file} --model {opened.name} --data DIR"
        yield f"Nothing yet: `fastpeer eval {markdown(where)} --attacks clean,fgsm,pgd20,aa` measures it."
        return
    head = ["| attack | accuracy in % | images | radius |", "| --- | ---: | --- | --- |"]
    yield "\n".join([*head, *map(_row, results)])
    yield f"Measured by fastpeer {__version__} with PyTorch {results[-1].torch}, in fp32."


def _row(result: Result) -> str:
    norm = "L-infinity" if result.norm == "linf" else "L2"
    radius = "" if result.attack == "clean" else f"{norm} {format_fraction(result.epsilon)}"
    images = images_text(result.images, result.total, result.dataset)
    pixels = f" ({result.pixels})" if result.pixels else ""
    return f"| {result.attack} | {markdown(cell(result))} | {markdown(images + pixels)} | {radius} |"


def _warnings(results: Sequence[Result]) -> list[str]:
    found = dict.fromkeys(warning for result in results for warning in result.warnings)
    return [f"- (!) {markdown(warning)}" for warning in found]


def _classes(opened: OpenedNetwork, classes: Sequence[str]) -> str:
    if not classes:
        return f"{opened.classes}; their names are not known to this export."
    names = [name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in classes[:MOST_CLASSES]]
    lines = [f"{number}. {markdown(name)}" for number, name in enumerate(names)]
    more = len(classes) - len(names)
    return "\n".join([*lines, *([f"… and {more} more"] if more else []), "", "Whole names: classes.json."])


def _licence(license: str) -> str:
    chosen = (
        f"Weights: {markdown(license)}."
        if license
        else "Weights: nobody has chosen a licence yet; without one, others may not use them."
    )
    terms = "The images that they were trained on have terms of their own."
    return f"{chosen} `network.py` and fastpeer: MIT. {terms}"
