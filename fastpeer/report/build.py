"""Builds the page: one file of HTML that asks for nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fastpeer.report.charts import svg
from fastpeer.report.records import RunReport
from fastpeer.report.sections import Section, facts_of


@dataclass(frozen=True)
class Chapter:
    """A run on the page, or the comparison of several, which is no run's."""

    name: str
    sections: Sequence[Section]
    report: RunReport | None = None


def page(chapters: Sequence[Chapter], written: str) -> str:
    """Return the page about runs as HTML; every text is escaped.

    Args:
        chapters: in their order.
        written: when and by what.
    """
    # StrictUndefined: a slip in the template is an error, not an empty place on the page.
    environment = Environment(
        loader=PackageLoader("fastpeer.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = resources.files("fastpeer.report") / "page"
    style, script = (Markup((folder / name).read_text("utf-8")) for name in ("style.css", "script.js"))
    title = ", ".join(chapter.name for chapter in chapters if chapter.report)
    return environment.get_template("page.html").render(
        chapters=chapters, title=title, style=style, script=script, written=written,
        drawn=lambda chart: Markup(svg(chart)), facts_of=facts_of,
    )  # fmt: skip
