"""Jupyter notebooks: their code cells as one script, and back."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from segdet.migrate.scripts import Migrated, Note, migrate_script

_CELL = "# segdet migrate: cell {}\n"
_CELLS = re.compile(re.escape(_CELL).replace(r"\{\}", r"(\d+)"))
_MAGIC = re.compile(r"^(\s*)([!%])", re.MULTILINE)  # `!pip install`, `%matplotlib inline`
_HIDDEN = "#segdet-magic"


def migrate_notebook(text: str) -> Migrated:
    """A notebook for this package; cells that are no Python, magics aside, stay as they are.

    Args:
        text: of an .ipynb file; written back as Jupyter writes it.

    Raises:
        ValueError: it is none.
    """
    notebook = json.loads(text)
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError("it has no cells")
    script, skipped = "", []
    for number, cell in enumerate(notebook["cells"]):
        if cell.get("cell_type") == "code":
            hidden = _MAGIC.sub(rf"\1{_HIDDEN}\2", _source(cell))
            if _is_python(hidden):
                script += _CELL.format(number) + hidden.rstrip("\n") + "\n"
            elif "detectron2" in hidden:
                skipped.append(Note(number + 1, "this cell is no Python, left as it is"))
    migrated = migrate_script(script)
    if migrated.renamed:
        parts = _CELLS.split(migrated.text)[1:]
        for number, code in zip(map(int, parts[::2]), parts[1::2], strict=True):
            _put(notebook["cells"][number], code.replace(_HIDDEN, ""))
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    notes = [Note(_cell_of(script, note.line), note.text) for note in migrated.notes]
    return Migrated(text, migrated.renamed, sorted({*notes, *skipped}))


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def _put(cell: dict[str, Any], code: str) -> None:
    """Write code into a cell the way it had it: as one text or as lines, with its last line end."""
    old = _source(cell)
    code = code.rstrip("\n") + old[len(old.rstrip("\n")) :]
    if code != old:
        as_text = isinstance(cell["source"], str)
        cell["source"] = code if as_text else code.splitlines(keepends=True)


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def _cell_of(script: str, line: int) -> int:
    """The cell, counted from 1, that a line of the joint script is of."""
    before = "".join(script.splitlines(keepends=True)[:line])
    return int(_CELLS.findall(before)[-1]) + 1
