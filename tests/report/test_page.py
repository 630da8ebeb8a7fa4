"""The page in a real browser: no request, no error, and all that a person can do with it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from fastpeer.report.build import Chapter, page
from fastpeer.report.charts import Chart, Heatmap, Series
from fastpeer.report.sections import Missing, Section, Table

pytestmark = pytest.mark.soak
LONG = "x" * 300


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not chromium:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as found:
        yield found


@pytest.fixture(scope="module")
def opened(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    table = Table(["run", "clean"], [["b", "9.50"], ["a", "10.20"], [LONG, "–"]], "accuracies")
    curves = [Series("first", [(0.0, 1.0), (1.0, 2.0)]), Series(LONG, [(0.0, 2.0), (1.0, 1.0)])]
    charts = [
        Chart("k", "Losses", "epoch", "loss", curves),
        Heatmap("h", "Heat", "x", "y", [[0, 1], [1, 0]], 1, 0.0, 1.0),
    ]
    missing = [Missing("AutoAttack was not run", f"fastpeer eval {LONG}")]
    section = Section("Section", charts, [table], missing=missing, notes=["<b>bold</b>"])
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page([Chapter(LONG, [section]), Chapter("second", [section])], "today"), "utf-8")
    browser.get(file.as_uri())
    return browser


def run(browser: Any, script: str) -> Any:
    return browser.execute_script(script)


def test_nothing_is_asked_for_and_nothing_fails(opened: Any) -> None:
    assert opened.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert [address for address in asked if not address.startswith(("file:", "data:"))] == []
    assert len([address for address in asked if address.startswith("file:")]) == 1


def test_a_heading_sorts_by_keyboard_and_what_has_no_figure_comes_last(opened: Any) -> None:
    names = "return [...document.querySelectorAll('tbody')[0].rows].map(row => row.cells[0].textContent)"
    opened.find_elements("css selector", "thead button")[1].send_keys("\n")
    assert run(opened, names) == ["b", "a", LONG]
    opened.find_elements("css selector", "thead button")[0].send_keys("\n")
    assert run(opened, names) == ["a", "b", LONG]


def test_a_legend_hides_its_curve_and_the_theme_switches(opened: Any) -> None:
    shown = "return getComputedStyle(document.querySelector('.series[data-series=\"0\"]')).display"
    button = opened.find_element("css selector", ".legend button")
    button.send_keys("\n")
    assert run(opened, shown) == "none"
    button.send_keys("\n")
    assert run(opened, shown) != "none"
    colour = "return getComputedStyle(document.body).backgroundColor"
    before = run(opened, colour)
    opened.find_element("id", "theme").send_keys("\n")
    assert run(opened, colour) != before


def test_a_phone_does_not_scroll_sideways(opened: Any) -> None:
    size: dict[str, object] = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert run(opened, "return document.documentElement.scrollWidth") == 360


def test_on_paper_all_is_light_and_controls_are_not_there(opened: Any) -> None:
    run(opened, "document.documentElement.dataset.theme = 'dark'")
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert run(opened, "return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    shown = "return ['#theme', 'nav'].map(name => getComputedStyle(document.querySelector(name)).display)"
    assert run(opened, shown) == ["none", "none"]
