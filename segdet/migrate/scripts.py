"""A Python file with detectron2's name replaced, token by token: all else stays as it is."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType

from segdet.config import get_cfg
from segdet.errors import did_you_mean
from segdet.migrate import names
from segdet.migrate.names import OURS, THEIRS

Place = tuple[int, int]  # line from 1, column from 0, in characters

# Calls whose text arguments name a module or logger.
_NAMING_CALLS = {"getLogger", "setup_logger", "import_module", "patch", "locate"}
_NODES = {"CN", "CfgNode", "ConfigNode"}
# What stands between tokens, or at the place of the next one.
_NO_TOKENS = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT}
_DOTTED = re.compile(rf"{THEIRS}(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True, order=True)
class Note:
    """Something that a person should look at.

    Attributes:
        line: from 1.
        text: what it is.
    """

    line: int
    text: str


@dataclass
class Migrated:
    """What became of one file.

    Attributes:
        text: the new content.
        renamed: how many places changed.
        notes: names and keys without a counterpart.
    """

    text: str
    renamed: int = 0
    notes: list[Note] = field(default_factory=list)


@dataclass(frozen=True)
class _Edit:
    start: Place
    end: Place
    text: str


def migrate_script(text: str) -> Migrated:
    """A script for this package.

    Args:
        text: of a Python file.

    Raises:
        SyntaxError: it is none.
    """
    tree = ast.parse(text)
    script = _Script(text, tree)
    script.visit(tree)
    script.check_keys(tree)
    new = _apply(text, script.edits)
    ast.parse(new)  # an edit that breaks the file would be our fault: raise it
    return Migrated(new, len(script.edits), sorted(set(script.notes)))


class _Script(ast.NodeVisitor):
    def __init__(self, text: str, tree: ast.AST) -> None:
        self.edits: list[_Edit] = []
        self.notes: list[Note] = []
        self._lines = _lines(text)
        self._tokens = [
            one
            for one in tokenize.generate_tokens(io.StringIO(text, newline="").readline)
            if one.type not in _NO_TOKENS
        ]
        self._modules = dict(_bound_modules(tree))  # local name -> module of theirs

    def visit_Import(self, node: ast.Import) -> None:
        for one in node.names:
            if not names.belongs(one.name):
                continue
            ours = names.our_module(one.name)
            if ours is None and (told := names.advice(one.name)):
                self._note(node, told)
                continue
            if ours is None:
                self._note(node, f"no module {one.name} here")
                ours = OURS + one.name.removeprefix(THEIRS)
            if one.asname is None and one.name.split(".")[0] != THEIRS:
                self._note(node, f"import {ours} instead of {one.name}")
                continue
            self._replace_dotted(self._place(one), one.name, ours)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level or not names.belongs(module):
            return
        homes: dict[str, list[ast.alias]] = {}
        usual = names.our_module(module) or OURS + module.removeprefix(THEIRS)
        for one in node.names:
            home = names.find(module, one.name)
            if home is None and (told := names.advice(f"{module}.{one.name}")):
                self._note(node, told)
                home = module  # stays as it is
            elif home is None:
                self._note(node, f"{module} has {one.name}, which has no counterpart here")
                home = usual
            homes.setdefault(home, []).append(one)
        if len(homes) == 1:
            start = self._index(self._place(node)) + 1  # behind "from"
            self._replace_dotted(self._tokens[start].start, module, next(iter(homes)))
        elif all(line.count("#") == 0 for line in self._lines_of(node)):
            self._split(node, homes)
        else:
            places = "; ".join(f"{home}: {_imported(found)}" for home, found in homes.items())
            self._note(node, f"these names are in several modules here: {places}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        root, path = _chain(node)
        if root is not None and root.id in self._modules:
            theirs = self._modules[root.id]
            if root.id == THEIRS and (told := names.advice(".".join([THEIRS, *path]))):
                self._note(node, told)
                return
            if ours := names.our_module(theirs):
                found, followed = names.member(ours, path)
                if found is None:
                    self._note(node, f"no {'.'.join([theirs, *followed])} here")
            if root.id == THEIRS:
                self._replace_dotted(self._place(root), THEIRS, OURS)
            return
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        called = node.func.id if isinstance(node.func, ast.Name) else called
        for one in [*node.args, *(keyword.value for keyword in node.keywords)]:
            if isinstance(one, ast.Constant) and called in _NAMING_CALLS:
                self._rename_text(one)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        was_renamed = any(edit.start == self._place(node) for edit in self.edits)
        if isinstance(node.value, str) and _DOTTED.fullmatch(node.value) and not was_renamed:
            self._note(node, f"the text {node.value!r} was left as it is")

    def check_keys(self, tree: ast.AST) -> None:
        """Note config keys that there are not, unless the script itself adds them."""
        cfg = get_cfg()
        known = [path for path, _, _ in cfg.leaves()]
        sections = {path.rpartition(".")[0] for path in known}
        sections |= {section.rpartition(".")[0] for section in sections}
        added = {key for node in _additions(tree) for key, _ in _config_keys(node, set(cfg))}
        for key, line in _config_keys(tree, set(cfg)):
            is_known = key in known or key in sections
            if not is_known and not any(key == a or key.startswith(f"{a}.") for a in added):
                hint = did_you_mean(key, known)
                self.notes.append(Note(line, f"no config key {key} here{hint}"))

    def _note(self, node: ast.AST, text: str) -> None:
        self.notes.append(Note(node.lineno, text))  # type: ignore[attr-defined]

    def _rename_text(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            token = self._tokens[self._index(self._place(node))]
            new = token.string.replace(THEIRS, OURS, 1)
            self.edits.append(_Edit(token.start, token.end, new))

    def _replace_dotted(self, place: Place, old: str, new: str) -> None:
        """Replace a dotted name whose first token is at `place`."""
        first = self._index(place)
        last = first + 2 * old.count(".")
        self.edits.append(_Edit(self._tokens[first].start, self._tokens[last].end, new))

    def _split(self, node: ast.ImportFrom, homes: dict[str, list[ast.alias]]) -> None:
        start = self._place(node)
        end = self._end(node)
        line = self._lines[start[0] - 1]
        indent = line[: start[1]]
        ending = "\r\n" if line.endswith("\r\n") else "\n"
        statements = [f"from {home} import {_imported(found)}" for home, found in homes.items()]
        joint = f"{ending}{indent}" if not indent.strip() else "; "
        self.edits.append(_Edit(start, end, joint.join(statements)))

    def _lines_of(self, node: ast.stmt) -> list[str]:
        return self._lines[node.lineno - 1 : node.end_lineno]

    def _place(self, node: ast.AST) -> Place:
        line, column = node.lineno, node.col_offset  # type: ignore[attr-defined]
        return line, len(self._lines[line - 1].encode()[:column].decode())

    def _end(self, node: ast.stmt) -> Place:
        assert node.end_lineno is not None and node.end_col_offset is not None, "parsed from text"
        last = self._lines[node.end_lineno - 1].encode()
        return node.end_lineno, len(last[: node.end_col_offset].decode())

    def _index(self, place: Place) -> int:
        return next(i for i, token in enumerate(self._tokens) if token.start == place)


def _bound_modules(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Local names that stand for modules of theirs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                if names.belongs(one.name) and one.asname is not None:
                    yield one.asname, one.name
                elif one.name.split(".")[0] == THEIRS:
                    yield THEIRS, THEIRS
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if not names.belongs(node.module):
                continue
            for one in node.names:
                home = names.find(node.module, one.name)
                if home and isinstance(names.member(home, [one.name])[0], ModuleType):
                    yield one.asname or one.name, f"{node.module}.{one.name}"


def _chain(node: ast.AST) -> tuple[ast.Name | None, list[str]]:
    """`a.b.c` is (a, ["b", "c"]); None where the root is no name."""
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.insert(0, node.attr)
        node = node.value
    return (node if isinstance(node, ast.Name) else None), path


def _additions(tree: ast.AST) -> Iterator[ast.AST]:
    """Where a script declares keys of its own: `add_x_config(cfg)`, and `cfg.MODEL.X = CN()`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "config" in node.name:
            yield from (one for one in ast.walk(node) if isinstance(one, ast.Assign))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            called = node.value.func
            if isinstance(called, ast.Name) and called.id in _NODES:
                yield node


def _config_keys(tree: ast.AST, top: set[str]) -> Iterator[tuple[str, int]]:
    """(key, line) of each `cfg.MODEL.X.Y`; longest chains only."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or (id(node) in inner and _is_key(node.attr)):
            continue
        root, path = _chain(node)
        while path and not _is_key(path[-1]):
            path.pop()  # cfg.MODEL.X.clone
        if path and path[0] == "cfg":
            path = path[1:]  # self.cfg.MODEL
        if root is not None and len(path) > 1 and path[0] in top and all(map(_is_key, path)):
            yield ".".join(path), node.lineno


def _is_key(name: str) -> bool:
    return name.isupper()


def _imported(found: list[ast.alias]) -> str:
    return ", ".join(one.name + (f" as {one.asname}" if one.asname else "") for one in found)


def _lines(text: str) -> list[str]:
    """Lines as Python counts them, each with its ending."""
    return io.StringIO(text, newline="").readlines()


def _apply(text: str, edits: list[_Edit]) -> str:
    lines = _lines(text)
    for edit in sorted(edits, key=lambda one: one.start, reverse=True):
        (first, left), (last, right) = edit.start, edit.end
        joined = lines[first - 1][:left] + edit.text + lines[last - 1][right:]
        lines[first - 1 : last] = [joined]
    return "".join(lines)
