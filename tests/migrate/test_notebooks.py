import json

import pytest

from segdet.migrate import main
from segdet.migrate.notebooks import migrate_notebook

CELLS = [
    ("markdown", ["# detectron2 in a text"]),
    ("code", ["!pip install detectron2\n", "import detectron2\n", "if x:\n", "    !ls\n", "    y"]),
    ("code", "%matplotlib inline\nfrom detectron2.config import get_cfg  # ä\n"),
    ("code", ["detectron2.engine.DefaultTrainer, detectron2.engine.Teapot"]),
    ("code", ["%%bash\n", "cd detectron2 && ls"]),
    ("code", ["print('nothing')\n"]),
]  # fmt: skip


def notebook(cells) -> str:
    content = {
        "cells": [{"cell_type": kind, "source": source, "outputs": []} for kind, source in cells],
        "nbformat": 4,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def test_only_code_changes():
    migrated = migrate_notebook(notebook(CELLS))
    expected = [
        CELLS[0],
        (
            "code",
            ["!pip install detectron2\n", "import segdet\n", "if x:\n", "    !ls\n", "    y"],
        ),
        ("code", "%matplotlib inline\nfrom segdet.config import get_cfg  # ä\n"),
        ("code", ["segdet.engine.DefaultTrainer, segdet.engine.Teapot"]),
        *CELLS[4:],
    ]
    assert migrated.text == notebook(expected)
    assert migrated.renamed == 4
    assert [(note.line, note.text) for note in migrated.notes] == [
        (4, "no detectron2.engine.Teapot here"),
        (5, "this cell is no Python, left as it is"),
    ]


def test_without_anything_to_rename_the_text_is_the_same():
    text = json.dumps({"cells": [], "nbformat": 4})
    assert migrate_notebook(text).text == text


@pytest.mark.parametrize("text", ["{", "[]", '{"worksheets": []}'])
def test_another_file_is_refused(text):
    with pytest.raises(ValueError):
        migrate_notebook(text)


def test_the_command_names_cells(tmp_path, capsys):
    (tmp_path / "a.ipynb").write_text(notebook(CELLS), encoding="utf-8")
    (tmp_path / "b.ipynb").write_text("detectron2")
    main([str(tmp_path), "--write"])
    out = capsys.readouterr().out
    assert f"{tmp_path}/a.ipynb: 4 renamed\n" in out
    assert f"{tmp_path}/a.ipynb: cell 4: no detectron2.engine.Teapot here\n" in out
    assert f"{tmp_path}/b.ipynb: cannot be read, left as it is" in out
    assert "import segdet" in (tmp_path / "a.ipynb").read_text(encoding="utf-8")
    assert (tmp_path / "a.ipynb.orig").read_text(encoding="utf-8") == notebook(CELLS)
