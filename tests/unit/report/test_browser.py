"""The report in a browser: every control does what it says, no script fails, nothing is asked of a network.

Needs Chromium and its driver (Debian: chromium, chromium-driver); skipped where they are not installed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from lrpot.console import Console
from lrpot.model_file import load
from lrpot.report.comparison import SHOWN_UNITS, Comparison, compare, errors_of
from lrpot.report.held_out import held_out
from lrpot.report.markup import number
from lrpot.report.run import read_run
from lrpot.report.worst import SHOWN, worst
from tests.unit.report.run_data import HOSTILE, TEST_ROWS, VALID_ROWS, WRONG_ROW
from tests.unit.report.test_page import data_of

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium and chromedriver on the PATH"),
]

PATIENCE = 30.0  # s, for what a slow machine draws
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # WebGL without a graphics card
    "--enable-unsafe-swiftshader",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--window-size=1400,1000",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    found.get("about:blank")
    for log in ("browser", "performance"):  # of the browser's own first page
        found.get_log(log)
    try:
        yield found
    finally:
        found.quit()


@pytest.fixture
def opened(browser: webdriver.Chrome, page: Path) -> Iterator[webdriver.Chrome]:
    """The page, fresh; afterwards, no script may have failed and nothing may have been asked for."""
    browser.get(page.as_uri())
    yield browser
    failed = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert failed == []
    asked = requests(browser)
    assert page.as_uri() in asked  # or the log is not what it is taken for
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {page.as_uri()}


@pytest.fixture(scope="module")
def comparisons(run: Path) -> list[Comparison]:
    model = load(run / "model.pt")
    return [compare(model, part) for part in held_out(read_run(run), Console(quiet=True))]


def requests(browser: webdriver.Chrome) -> set[str]:
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}


def wait_for(browser: webdriver.Chrome, script: str, *arguments: object) -> Any:
    return WebDriverWait(browser, PATIENCE).until(lambda b: b.execute_script(script, *arguments))


def shown(browser: webdriver.Chrome, selector: str) -> list[WebElement]:
    return [found for found in browser.find_elements(By.CSS_SELECTOR, selector) if found.is_displayed()]


def shown_viewer(browser: webdriver.Chrome) -> WebElement:
    """The 3-D view with its controls, scrolled to and drawn."""
    (viewer,) = shown(browser, "[data-view]")
    browser.execute_script("arguments[0].scrollIntoView()", viewer)
    wait_for(browser, "return arguments[0].querySelector('.gl-container canvas')", viewer)
    return viewer


def scene_data(browser: webdriver.Chrome) -> dict[str, Any]:
    """What the 3-D view holds, by name of the trace; of arrays that are long, what can be told of them."""
    script = """
        const scene = [...document.querySelectorAll('.scene')].find((one) => one.offsetParent !== null);
        const camera = scene._fullLayout.scene._scene.getCamera();
        return {eye: Object.values(camera.eye), traces: Object.fromEntries(scene.data.map((one) => [one.name, {
            corners: one.x.length, intensity: one.intensity ?? null, colours: [...new Set(one.vertexcolor ?? [])],
            texts: [...new Set(one.text ?? [])],
        }]))};"""
    return browser.execute_script(script)


def test_values_are_those_of_python_in_every_part(opened: webdriver.Chrome, comparisons: list[Comparison]) -> None:
    tabs = shown(opened, "[role=tab]")
    assert [tab.text for tab in tabs] == [f"test ({TEST_ROWS} structures)", f"validation ({VALID_ROWS} structures)"]
    for tab, other, comparison in zip(tabs, tabs[::-1], comparisons, strict=True):
        tab.click()
        assert (tab.get_attribute("aria-selected"), other.get_attribute("aria-selected")) == ("true", "false")
        cards = shown(opened, ".card")
        assert [card.get_attribute("data-quantity") for card in cards] == comparison.quantities
        for card, quantity in zip(cards, comparison.quantities, strict=True):
            errors = errors_of(comparison.differences(quantity), quantity)
            assert errors is not None
            expected = f"{number(errors.mae).text} {SHOWN_UNITS[quantity][1]}"
            assert card.find_element(By.CSS_SELECTOR, ".value").text == expected
        (table,) = shown(opened, "table[id^=elements]")
        for group in comparison.by_element():
            (row,) = [
                row for row in table.find_elements(By.CSS_SELECTOR, "tbody tr") if row.text.split()[0] == group.name
            ]
            cells = [cell.text for cell in row.find_elements(By.TAG_NAME, "td")]
            forces = group.errors["forces"]
            assert cells[:5] == [
                group.name, str(group.structures), str(group.atoms), number(forces.mae).text, number(forces.rmse).text,
            ]  # fmt: skip


def test_every_figure_is_drawn_with_its_data(opened: webdriver.Chrome, page: Path) -> None:
    figures = data_of(page.read_text(encoding="utf-8"))["figures"]
    opened.set_window_size(1400, 12000)  # figures wait until they are in sight
    in_sight = "[...document.querySelectorAll('[data-figure]')].filter((place) => place.offsetParent !== null)"
    drawn = set()
    for tab in shown(opened, "[role=tab]"):
        tab.click()
        wait_for(opened, f"return {in_sight}.every((place) => place.querySelector('.main-svg'))")
        for name, y, width, height in opened.execute_script(f"""
                return {in_sight}.map((place) => [place.dataset.figure,
                    place.data.map((trace) => Array.from(trace.y ?? [])),
                    place.querySelector('.main-svg').clientWidth, place.querySelector('.main-svg').clientHeight]);"""):
            assert y == [trace.get("y", []) for trace in figures[name]["data"]], name
            assert width > 200
            assert height == figures[name]["layout"]["height"]
            drawn.add(name)
    assert drawn == set(figures)
    opened.set_window_size(1400, 1000)


def test_a_point_under_the_mouse_tells_its_row(opened: webdriver.Chrome, comparisons: list[Comparison]) -> None:
    place = opened.find_element(By.CSS_SELECTOR, "[data-figure=parity-0-1]")
    wrong = int(np.argmax(np.abs(comparisons[0].differences("forces"))))
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", place)
    wait_for(opened, "return arguments[0].querySelector('.main-svg') !== null", place)
    script = """
        const [plot, point] = arguments;
        const axes = [plot._fullLayout.xaxis, plot._fullLayout.yaxis];
        const trace = plot.data.find((one) => one.mode === "markers");
        return [axes[0]._offset + axes[0].c2p(trace.x[point]), axes[1]._offset + axes[1].c2p(trace.y[point])];"""
    x, y = opened.execute_script(script, place, wrong)
    box = place.size
    ActionChains(opened).move_to_element_with_offset(
        place, round(x - box["width"] / 2), round(y - box["height"] / 2)
    ).perform()
    text = wait_for(opened, "return arguments[0].querySelector('.hoverlayer')?.textContent", place)
    assert f"{HOSTILE}, row {WRONG_ROW}, atom" in text
    # what a file is called is text and no markup, here as everywhere
    assert opened.find_elements(By.CSS_SELECTOR, "main img") == []


def test_tables_are_sorted_by_any_column_both_ways(opened: webdriver.Chrome) -> None:
    click = """
        const heading = arguments[0].parentNode;
        const column = [...heading.parentNode.children].indexOf(heading);
        arguments[0].click();
        const cells = [...heading.closest("table").tBodies[0].rows].map((row) => row.cells[column]);
        return [heading.getAttribute("aria-sort"), heading.className === "number",
                cells.map((cell) => cell.dataset.key ?? null), cells.map((cell) => cell.textContent)];"""
    buttons = shown(opened, "button.sort")
    assert len(buttons) > 30
    for button in buttons:
        for direction in ("ascending", "descending"):
            said, is_number, keys, texts = opened.execute_script(click, button)
            assert said == direction
            values = [float(key) for key in keys if key is not None] if is_number else texts
            if is_number:
                assert all(key is None for key in keys[len(values) :])  # gaps stand at the end
            assert values == sorted(values, reverse=direction == "descending")


def test_worst_structures_can_be_chosen_in_every_way(opened: webdriver.Chrome, comparisons: list[Comparison]) -> None:
    expected = worst(comparisons[0])
    viewer = shown_viewer(opened)
    kind = Select(viewer.find_element(By.CSS_SELECTOR, "select.kind"))
    assert [option.text for option in kind.options] == ["force", "energy"]
    for name in ("energy", "forces"):
        kind.select_by_value(name)
        pick = Select(viewer.find_element(By.CSS_SELECTOR, "select.pick"))
        assert [int(option.get_attribute("value") or -1) for option in pick.options] == expected[name]
        assert len(pick.options) == min(SHOWN, TEST_ROWS)
        for place in expected[name]:
            pick.select_by_value(str(place))
            found = expected["structures"][place]
            told = viewer.find_element(By.CSS_SELECTOR, ".told").text
            assert f"row {found['row']}: ClNa, 16 atoms" in told
            largest = float(re.search(r"largest force error ([\d.]+) meV", told)[1])  # type: ignore[index]
            assert largest == pytest.approx(found["largest_force_error"], rel=5e-3)  # three digits
            (chosen,) = shown(opened, "tr.chosen")
            assert chosen.get_attribute("data-structure") == str(place)
            drawn = scene_data(opened)["traces"]
            assert max(drawn["atoms"]["intensity"]) == pytest.approx(found["largest_force_error"], rel=1e-5)
    # a row of the table chooses too
    for row in shown(opened, "tr[data-structure]"):
        opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", row)
        row.click()
        assert "chosen" in (row.get_attribute("class") or "")
        place = viewer.find_element(By.CSS_SELECTOR, "select.pick").get_attribute("value")
        assert place == row.get_attribute("data-structure")


def test_the_view_shows_atoms_cell_errors_and_elements(opened: webdriver.Chrome) -> None:
    viewer = shown_viewer(opened)
    traces = scene_data(opened)["traces"]
    assert set(traces) == {"atoms", "cell", "arrows"}
    assert traces["cell"]["corners"] == 12 * 3  # two ends and a gap for each edge
    assert traces["atoms"]["corners"] % 16 == 0
    assert len(traces["atoms"]["texts"]) == 16
    assert all(re.match(r"atom \d+ \((Na|Cl)\)<br>force error", text) for text in traces["atoms"]["texts"])
    viewer.find_element(By.CSS_SELECTOR, "input[value=element]").click()
    traces = scene_data(opened)["traces"]
    assert traces["atoms"]["intensity"] is None
    assert len(traces["atoms"]["colours"]) == 2
    assert [item.text.strip() for item in shown(opened, ".viewer .key li")] == ["Cl", "Na"]
    viewer.find_element(By.CSS_SELECTOR, "input.arrows").click()
    assert set(scene_data(opened)["traces"]) == {"atoms", "cell"}
    viewer.find_element(By.CSS_SELECTOR, "input[value=error]").click()
    assert scene_data(opened)["traces"]["atoms"]["intensity"] is not None
    assert shown(opened, ".viewer .key li") == []
    assert drawn_share(viewer) > 0.02


def drawn_share(viewer: WebElement) -> float:
    """The part of the view that is not white."""
    import io

    from matplotlib.image import imread

    picture = imread(io.BytesIO(viewer.find_element(By.CSS_SELECTOR, ".scene").screenshot_as_png))
    return float((picture[..., :3].min(axis=-1) < 0.9).mean())


def test_the_view_is_turned_zoomed_and_set_back(opened: webdriver.Chrome) -> None:
    viewer = shown_viewer(opened)
    scene = viewer.find_element(By.CSS_SELECTOR, ".scene")
    first = np.array(scene_data(opened)["eye"])
    ActionChains(opened).move_to_element(scene).click_and_hold().move_by_offset(120, 40).release().perform()
    turned = np.array(scene_data(opened)["eye"])
    assert np.linalg.norm(turned - first) > 0.1
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(first), rel=0.05)
    opened.execute_script(
        "arguments[0].querySelector('.gl-container canvas, #scene canvas, canvas')"
        ".dispatchEvent(new WheelEvent('wheel', {deltaY: -300, bubbles: true, cancelable: true}))",
        scene,
    )
    wait_for(
        opened,
        "return Math.hypot(...Object.values(arguments[0]._fullLayout.scene._scene.getCamera().eye)) < arguments[1]",
        scene,
        float(np.linalg.norm(first)) * 0.95,
    )
    # what is coloured how does not turn it back
    viewer.find_element(By.CSS_SELECTOR, "input[value=element]").click()
    assert np.linalg.norm(np.array(scene_data(opened)["eye"]) - first) > 0.1
    viewer.find_element(By.CSS_SELECTOR, "button.reset").click()
    np.testing.assert_allclose(scene_data(opened)["eye"], first, atol=1e-3)


def test_keys_choose_a_part_and_links_lead_to_sections(opened: webdriver.Chrome) -> None:
    first, second = shown(opened, "[role=tab]")
    first.send_keys(Keys.ARROW_RIGHT)
    assert second.get_attribute("aria-selected") == "true"
    assert opened.switch_to.active_element == second
    second.send_keys(Keys.ARROW_RIGHT)
    assert first.get_attribute("aria-selected") == "true"
    links = shown(opened, "nav a")
    assert len(links) == 7
    for link in links:
        link.click()
        target = (link.get_attribute("href") or "").split("#")[1]
        assert opened.find_element(By.ID, target).find_element(By.TAG_NAME, "h2").text == link.text


def test_on_paper_figures_are_as_wide_as_the_paper(opened: webdriver.Chrome) -> None:
    plot = shown(opened, "[data-figure]")[0]
    opened.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert all(place.find_elements(By.CSS_SELECTOR, ".main-svg") for place in shown(opened, "[data-figure]"))
    wait_for(opened, "return arguments[0].querySelector('.main-svg').clientWidth <= 345", plot)
    opened.execute_script("window.dispatchEvent(new Event('afterprint'))")
    wait_for(opened, "return arguments[0].querySelector('.main-svg').clientWidth > 400", plot)


@pytest.mark.parametrize("width", [800, 500])
def test_a_narrow_window_needs_no_scrolling_to_the_side(opened: webdriver.Chrome, width: int) -> None:
    opened.set_window_size(width, 1000)
    wait_for(opened, "return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    opened.set_window_size(1400, 1000)


def test_the_page_itself_forbids_requests(browser: webdriver.Chrome, page: Path) -> None:
    browser.get(page.as_uri())
    refused = browser.execute_async_script("""
        const done = arguments[arguments.length - 1];
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
        fetch("http://127.0.0.1:9/").catch(() => {});""")
    assert refused == "connect-src"
    browser.get_log("browser")
    requests(browser)
