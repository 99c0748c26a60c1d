"""The page: a template with style, scripts and data inside it, and nothing to fetch."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from string import Template
from typing import Any

import segdet

_STYLES = ("report.css", "gallery.css")
_SCRIPTS = ("dom.js", "charts.js", "sections.js", "metrics.js", "gallery.js", "page.js")


def page(data: dict[str, Any]) -> str:
    """The page of a report.

    Its policy lets the browser run the one script and style by their hashes, show pictures that
    are inside it, and ask for nothing. Names from data sets and runs reach it as data alone.

    Args:
        data: what the scripts draw; `title` is the page's.
    """
    style = "\n".join(map(_part, _STYLES))
    script = f'"use strict";\n(() => {{\n{"".join(map(_part, _SCRIPTS))}}})();\n'
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    return Template(_part("report.html")).substitute(
        policy=html.escape(policy),
        title=html.escape(data["title"]),
        version=html.escape(segdet.__version__),
        style=style,
        script=script,
        data=_as_json(data),
    )


def _part(name: str) -> str:
    return (files("segdet.report") / "template" / name).read_text("utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _as_json(data: dict[str, Any]) -> str:
    """JSON that stays what it is between the tags of a script element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
