"""The page in a real browser."""

import pytest

from segdet.report.command import main
from tests.report.browser import CHROMIUM, Page
from tests.report.runs import EVIL, write_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium on PATH")

PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def files(tmp_path_factory, demo):
    """The page of a run, and that of two."""
    folder = tmp_path_factory.mktemp("pages")
    runs = [str(write_run(folder / str(k), demo, shift=6 * k)) for k in (0, 1)]
    one, two = folder / "one.html", folder / "two.html"
    main([runs[0], "--output", str(one)])
    main([runs[0], "--against", runs[1], "--output", str(two)])
    return one, two


@pytest.mark.parametrize("which", [0, 1])
def test_opens_without_a_complaint_or_a_request(browser, files, which):
    browser.events.clear()
    browser.open(files[which])
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    browser.run("document.querySelectorAll('.more').forEach((one) => one.click())")
    assert browser.complaints() == [] and browser.requests() == []
    assert browser.run("document.querySelectorAll('main > section').length") == 6
    assert browser.run("document.querySelectorAll('.empty, .notice').length") == 0
    assert browser.run("document.querySelectorAll('.pictures button').length") == 6
    assert browser.run("document.querySelectorAll('.chart svg').length") >= 5
    assert browser.run("[...document.images].every((one) => one.naturalWidth > 0 && one.alt)")


def test_names_from_data_do_nothing(browser, files):
    browser.open(files[0])
    names = "[...document.querySelectorAll('th')].map((one) => one.textContent)"
    assert EVIL in browser.run(names)
    assert browser.run("window.hurt === undefined")
    browser.run("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror='hurt=1'>`)")
    browser.run("new Promise((done) => setTimeout(done, 50))")
    assert browser.run("window.hurt === undefined")  # the policy, even if markup got in
    assert any("Content Security Policy" in one for one in browser.complaints())


def test_settings_are_searched(browser, files):
    browser.open(files[0])
    rows = "document.querySelectorAll('#config tbody tr').length"
    assert browser.run(rows) == 1  # DATASETS.TEST
    browser.run(
        "(() => { const box = document.querySelector('#config input'); box.value = 'nothing';"
        "box.dispatchEvent(new Event('input')); })()"
    )
    assert browser.run(rows) == 0
    assert "No setting with" in browser.run("document.querySelector('#config .small').textContent")


def test_the_gallery_is_used_by_keyboard(browser, files):
    browser.open(files[1])
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    title = "document.querySelector('dialog h3').textContent"
    browser.run("document.querySelector('.pictures button').focus()")
    browser.press("ArrowRight", "Enter")
    assert browser.run("document.querySelector('dialog').open")
    assert browser.run("document.querySelectorAll('dialog figure').length") == 3
    assert "(2 of 6)" in browser.run(title)
    browser.press("ArrowRight")
    assert "(3 of 6)" in browser.run(title)
    browser.press("Escape")
    assert not browser.run("document.querySelector('dialog').open")
    buttons = "[...document.querySelectorAll('.pictures button')]"
    assert browser.run(f"{buttons}.indexOf(document.activeElement)") == 1


def test_the_gallery_is_filtered(browser, files):
    browser.open(files[0])
    choose = (
        "(() => {{ const one = [...document.querySelectorAll('#gallery label')].find((label) =>"
        " label.textContent.startsWith('{}')).querySelector('select, input'); one.value = '{}';"
        " one.dispatchEvent(new Event('{}', {{ bubbles: true }})); }})()"
    )
    names = "[...document.querySelectorAll('.pictures [data-kind]')].map((x) => x.dataset.kind)"
    shown = "document.querySelectorAll('.pictures button').length"
    browser.run(choose.format("Outcome", "duplicate", "change"))
    assert set(browser.run(names)) == {"duplicate"} and 0 < browser.run(shown) < 6
    browser.run(choose.format("Score", "1", "input"))
    assert browser.run(shown) == 0
    assert "No picture fits" in browser.run("document.querySelector('#gallery .small').textContent")


def test_fits_a_phone_and_changes_its_theme(browser, files):
    browser.call("Emulation.setDeviceMetricsOverride", **PHONE)
    browser.open(files[1])
    assert browser.run("document.documentElement.scrollWidth") == PHONE["width"]
    colour = "getComputedStyle(document.body).backgroundColor"
    before = browser.run(colour)
    browser.run("document.documentElement.dataset.theme = 'light'")
    light = browser.run(colour)
    browser.run("document.getElementById('theme').click()")
    assert browser.run("document.documentElement.dataset.theme") == "dark"
    assert light != browser.run(colour) and before in (light, browser.run(colour))
