"""The pages in a real browser: they are readable, and whatever a run contains, they run no code and load nothing."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.reported import FAR, NEAR, attacks, log, make_run, membership
from unlora.cli import main
from unlora.report.page import write_report

pytestmark = pytest.mark.slow

SCRIPT = "<script>alert(1)</script>"
IMAGE = '"><img src=x onerror=alert(2)>'
CLOSING = "</title></style></svg></code><svg onload=alert(3)> $\\frac{ \u202e\u0007 \U0001f600"
LEVELS = re.compile(r"<h([1-6])")
# For each visible element with text of its own: the colour of the text, the background colours of the element and its
# ancestors (nearest first), and the start of the text.
COLOURS = """() => [...document.querySelectorAll('body *')].filter(e =>
    [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getClientRects().length
    && !e.closest('title, desc')
).map(e => {
    const style = getComputedStyle(e), backgrounds = [];
    for (let up = e; up; up = up.parentElement) backgrounds.push(getComputedStyle(up).backgroundColor);
    return [e instanceof SVGElement ? style.fill : style.color, backgrounds, e.textContent.trim().slice(0, 40)];
})"""


@pytest.fixture
def hostile(tmp_path):
    """A run in which every text contains markup."""
    texts = {"question": f"{SCRIPT} {{}} {IMAGE}", "said": f"{IMAGE} {{}} {CLOSING}", "answer": f"{CLOSING} {{}}"}
    texts = {name: text.replace("{", "{{").replace("}", "}}").replace("{{{{}}}}", "{}") for name, text in texts.items()}
    evaluated = {"original": log(0.99, FAR, **texts), "unlearned": log(0.4, NEAR, **texts)}
    evaluated["retrained"] = evaluated["unlearned"]
    for content in evaluated.values():
        content["eval_log_forget.json"]["gt_tokens"] = {
            index: [SCRIPT, IMAGE, CLOSING] for index in content["eval_log_forget.json"]["gt_tokens"]
        }
    run = make_run(
        tmp_path / "a<script>alert(1)<" / "script> <img src=x onerror=alert(1)>",
        evaluated,
        settings={SCRIPT: IMAGE, "model_name_or_path": SCRIPT, "init": IMAGE},
        metrics={"train": [{"step": 1, "forget_loss": 1.0, SCRIPT: 2.0, IMAGE: 3.0}]},
        membership=membership(0.55, retrained=0.5, names=(SCRIPT, IMAGE, CLOSING)),
        attacks=attacks(name=SCRIPT, setting=CLOSING),
        record={SCRIPT: {IMAGE: [CLOSING]}, "command": CLOSING, "created": SCRIPT},
    )
    save_file({f"layers.0.{SCRIPT}": np.array([1.0, 2.0]), IMAGE: np.array([3.0])}, run / "importance.safetensors")
    return run


@pytest.fixture
def honest(tmp_path):
    record = {"data": {"forget": {"rows": 40, "sha256": "0123456789abcdef" * 4}}}
    parts = {"membership": membership(0.55, retrained=0.5), "attacks": attacks(), "record": record}
    return make_run(tmp_path / "run", **parts)


def opened(page, path, width=1200, scheme="light"):
    """Open a page and unfold all its details. Return the URLs that it requested, other than itself and data URLs."""
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    return [url for url in requests if url != path.as_uri() and not url.startswith("data:")]


def check_harmless(page, path):
    requests = opened(page, path)
    # The page has loaded. Wait two more frames, so that any event handlers in the markup would have run.
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.errors == []
    assert requests == []
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("document.querySelectorAll('img, iframe, object, embed, form').length") == 0
    attributes = page.evaluate("[...document.querySelectorAll('*')].flatMap(e => e.getAttributeNames())")
    assert not [name for name in attributes if name.startswith("on")]


def test_markup_in_a_run_is_text(browser_page, hostile):
    check_harmless(browser_page, write_report(hostile))
    shown = browser_page.inner_text("body")
    assert shown.count("<script>alert(1)</script>") > 10
    assert shown.count('"><img src=x onerror=alert(2)>') > 10
    drawn = browser_page.evaluate("[...document.querySelectorAll('svg text')].map(e => e.textContent).join()")
    assert "<script>alert(1)</script>" in drawn
    assert "</title></style></svg>" in drawn


def test_markup_in_compared_runs_is_text(browser_page, hostile, honest, tmp_path):
    page = tmp_path / "compare.html"
    assert main(["compare", str(hostile), str(honest), "--output", str(page)]) == 0
    check_harmless(browser_page, page)
    assert "script> <img src=x onerror=alert(1)>" in browser_page.inner_text("body")


@pytest.fixture(params=["report", "hostile report", "comparison"])
def any_page(request, hostile, honest, tmp_path):
    if request.param != "comparison":
        return write_report(hostile if "hostile" in request.param else honest)
    other = make_run(tmp_path / "other", settings={"learning_rate": 3e-4})
    assert main(["compare", str(honest), str(other), "--output", str(tmp_path / "compare.html")]) == 0
    return tmp_path / "compare.html"


def test_on_a_phone_only_tables_scroll(browser_page, any_page):
    opened(browser_page, any_page, width=390)
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= 390
    cut = """() => [...document.querySelectorAll('body *')].filter(e =>
        !e.closest('.scroll, .skip, svg') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"""
    assert browser_page.evaluate(cut) == []
    sizes = browser_page.evaluate(
        "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height).filter(h => h)"
    )
    assert min(sizes) >= 10


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(browser_page, any_page, scheme):
    opened(browser_page, any_page, scheme=scheme)
    ground = luminance(colour(browser_page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])
    assert ground < 0.05 if scheme == "dark" else ground > 0.9
    found = browser_page.evaluate(COLOURS)
    assert len(found) > 30
    weak = [(text, ratio) for front, backs, text in found if (ratio := contrast(front, backs)) < 4.5]
    assert weak == []


def colour(text):
    """Return red, green and blue (0 to 255) and the opacity of a computed colour."""
    numbers = [float(part) for part in re.findall(r"[\d.]+", text)]
    assert text.startswith("rgb"), text
    return (*numbers[:3], numbers[3] if len(numbers) > 3 else 1.0)


def luminance(rgb):
    """Return the relative luminance of a colour, as defined in WCAG 2."""
    parts = [value / 255 for value in rgb]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(front, backgrounds):
    """Return WCAG 2's contrast ratio of a colour and what is behind it: layers of backgrounds, nearest first."""
    behind = (255.0, 255.0, 255.0)
    for layer in map(colour, reversed(backgrounds)):
        behind = tuple(layer[3] * value + (1 - layer[3]) * below for value, below in zip(layer, behind, strict=False))
    one, other = sorted((luminance(colour(front)[:3]), luminance(behind)), reverse=True)
    return (one + 0.05) / (other + 0.05)


def test_contrast_by_hand():
    """White on black has contrast 21.

    Half-transparent black over white has luminance 0.2140. The contrast of white text on it is
    (1 + 0.05) / (0.2140 + 0.05) = 3.98.
    """
    assert contrast("rgb(255, 255, 255)", ["rgb(0, 0, 0)"]) == pytest.approx(21)
    assert contrast("rgb(255, 255, 255)", ["rgba(0, 0, 0, 0.5)", "rgb(255, 255, 255)"]) == pytest.approx(3.98, abs=0.02)


def test_the_parts_of_a_page_have_names(browser_page, any_page):
    opened(browser_page, any_page)
    assert browser_page.get_attribute("html", "lang") == "en"
    assert browser_page.title()
    levels = [int(level) for level in LEVELS.findall(browser_page.content())]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    drawings = browser_page.evaluate(
        """[...document.querySelectorAll('svg')].map(e => [e.getAttribute('role'), e.getAttribute('aria-label'),
        e.querySelector(':scope > title')?.textContent, e.querySelector(':scope > desc')?.textContent])"""
    )
    assert drawings
    for role, label, title, description in drawings:
        assert role == "img"
        assert title
        assert description
        assert label == f"{title}. {description}"
    tables = browser_page.evaluate(
        """[...document.querySelectorAll('table')].map(t => [t.caption?.textContent,
        [...t.tHead.rows[0].cells].every(c => c.tagName === 'TH' && c.scope === 'col'),
        [...t.tBodies[0].rows].every(r => r.cells[0].tagName === 'TH' && r.cells[0].scope === 'row'),
        [...t.rows].every(r => r.cells.length === t.tHead.rows[0].cells.length)])"""
    )
    assert tables
    assert all(caption and all(rest) for caption, *rest in tables)
    scrolling = browser_page.evaluate(
        "[...document.querySelectorAll('.scroll')].map(e => [e.tabIndex, e.getAttribute('role'), e.ariaLabel])"
    )
    assert all(place == 0 and role == "region" and label for place, role, label in scrolling)


def test_the_first_screen_answers_four_questions_and_a_page_is_four_screens_long(browser_page, honest):
    browser_page.set_viewport_size({"width": 1280, "height": 900})
    browser_page.goto(write_report(honest).as_uri())
    questions = browser_page.locator(".card h2").all_inner_texts()
    assert questions == ["Is it gone?", "Is the text still good?", "What did it cost?", "What next?"]
    ends = browser_page.evaluate("[...document.querySelectorAll('.card')].map(e => e.getBoundingClientRect().bottom)")
    assert max(ends) <= 900
    assert browser_page.evaluate("document.documentElement.scrollHeight") <= 4 * 900


def test_a_keyboard_is_enough(browser_page, honest):
    browser_page.goto(write_report(honest).as_uri())
    browser_page.keyboard.press("Tab")
    assert browser_page.evaluate("document.activeElement.textContent") == "Skip to content"
    assert browser_page.evaluate("document.activeElement.getBoundingClientRect().left") > 0
    browser_page.keyboard.press("Tab")
    assert browser_page.evaluate("document.activeElement.tagName") == "SUMMARY"
    browser_page.keyboard.press("Enter")
    assert browser_page.is_visible("ul.limits")


def test_numbers_on_the_page_are_those_of_the_run(browser_page, honest):
    opened(browser_page, write_report(honest))
    cells = browser_page.evaluate(
        """Object.fromEntries([...document.querySelectorAll('main table')].flatMap(t => [...t.tBodies[0].rows])
        .map(r => [r.cells[0].firstChild.textContent.trim(), [...r.cells].slice(1).map(
            c => c.firstChild.textContent.trim())]))"""
    )
    assert cells["Forget set: probability"] == ["0.990", "0.400", "0.400"]
    assert cells["Retain set: probability"] == ["0.900", "0.900", "0.900"]
    assert cells["Forget quality (p)"][1:] == ["1", "1"]
    assert "0123456789abcdef" * 4 in browser_page.inner_text("main")


def test_labels_of_points_touch_neither_each_other_nor_a_number(browser_page, tmp_path):
    """Two points coincide with that of the retrained model, and two lie close to it."""
    shares = {"run-a": 0.4, "a-run-with-a-long-name": 0.4, "run-c": 0.41, "run-d": 0.43}
    names = list(shares)
    runs = [
        make_run(
            tmp_path / name, {"original": log(0.99, FAR), "unlearned": log(share, NEAR), "retrained": log(0.4, NEAR)}
        )
        for name, share in shares.items()
    ]
    page = tmp_path / "compare.html"
    assert main(["compare", *map(str, runs), "--output", str(page)]) == 0
    opened(browser_page, page)
    boxes = browser_page.evaluate(
        """[...document.querySelector('figure svg').querySelectorAll('text')].map(
        e => { const b = e.getBoundingClientRect(); return [e.textContent, b.left, b.top, b.right, b.bottom]; })"""
    )
    assert {text for text, *_ in boxes} >= {*names, "retrained model", "original model"}
    for (one, *a), (other, *b) in itertools.combinations(boxes, 2):
        assert not (a[0] < b[2] and b[0] < a[2] and a[1] + 2 < b[3] and b[1] + 2 < a[3]), (one, other)
