import base64
import hashlib
import html
import json
import re

import pytest

from segdet.report.page import page
from tests.report.runs import EVIL


@pytest.fixture
def text():
    return page({"title": f"a {EVIL}", "name": f"{EVIL} & \u2028"})


def test_data_stays_data(text):
    assert text.count("<script") == 2 and EVIL not in text
    assert f"<title>{html.escape(f'a {EVIL}')}</title>" in text
    (data,) = re.findall(r'<script type="application/json" id="report">(.*?)</script>', text)
    assert json.loads(data)["name"] == f"{EVIL} & \u2028"


def test_the_policy_allows_this_script_and_style_alone(text):
    policy = html.unescape(re.findall(r'Policy" content="(.*?)">', text)[0])
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in policy
    assert "unsafe" not in policy


def test_names_no_address_but_that_of_svg(text):
    assert set(re.findall(r"\w+://[^\"']*", text)) == {"http://www.w3.org/2000/svg"}
