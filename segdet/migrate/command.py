"""The command: which files, what is said of them, and writing them."""

from __future__ import annotations

import argparse
import io
import shutil
import tokenize
from pathlib import Path

from segdet.errors import ConfigError
from segdet.migrate.configs import config_problems, is_config
from segdet.migrate.notebooks import migrate_notebook
from segdet.migrate.scripts import migrate_script
from segdet.utils.writing import write_atomically

BACKUP = ".orig"
_CODE = {".py": migrate_script, ".ipynb": migrate_notebook}
_SKIPPED = {".git", ".venv", "venv", "node_modules", "__pycache__", "site-packages"}


def main(argv: list[str]) -> None:
    """Replace detectron2's name by ours in scripts, and list what has no counterpart."""
    parser = argparse.ArgumentParser(
        prog="segdet migrate",
        description=main.__doc__,
        epilog="Without --write nothing is changed. Configs stay as they are: they are read with "
        f"detectron2's keys. A changed script's old content is kept as FILE{BACKUP}.",
    )
    parser.add_argument(
        "path", type=Path, nargs="+", help="scripts, notebooks, configs or folders of them"
    )
    parser.add_argument("--write", action="store_true", help="change the scripts")
    args = parser.parse_args(argv)
    files = [file for path in args.path for file in _files(path)]
    if args.write:
        _refuse_old_backups(files)
    read = renamed = notes = 0
    for file in files:
        if file.suffix in _CODE:
            changes, found = _script(file, write=args.write)
        elif is_config(file):
            changes, found = 0, config_problems(file)
        else:
            continue
        read, renamed, notes = read + 1, renamed + changes, notes + len(found)
        if changes:
            print(f"{file}: {changes} {'renamed' if args.write else 'to rename'}")
        for one in found:
            print(f"{file}:{'' if one[:1].isdigit() else ' '}{one}")
    done = "renamed" if args.write else "to rename (--write does it)"
    print(f"{read} files: {renamed} {done}, {notes} to look at")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"{path}: no such file or folder")
    return sorted(
        file
        for file in path.rglob("*")
        if file.suffix in (*_CODE, ".yaml", ".yml")
        and file.is_file()
        and not _SKIPPED & set(file.relative_to(path).parts)
    )


def _script(file: Path, *, write: bool) -> tuple[int, list[str]]:
    """How many names of a script change, and what to look at; writes it if told."""
    data = file.read_bytes()
    if b"detectron2" not in data and b"fvcore" not in data:
        return 0, []
    try:
        encoding = "utf-8"
        if file.suffix == ".py":
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        migrated = _CODE[file.suffix](data.decode(encoding))
    except (SyntaxError, ValueError) as error:
        return 0, [f"cannot be read, left as it is ({error})"]
    if write and migrated.renamed:
        shutil.copy2(file, _backup(file))
        new = migrated.text.encode(encoding)
        write_atomically(file, lambda out: out.write(new))
        shutil.copymode(_backup(file), file)
    where = "cell " if file.suffix == ".ipynb" else ""
    return migrated.renamed, [f"{where}{note.line}: {note.text}" for note in migrated.notes]


def _backup(file: Path) -> Path:
    return file.with_name(file.name + BACKUP)


def _refuse_old_backups(files: list[Path]) -> None:
    for file in files:
        if file.suffix in _CODE and _backup(file).exists():
            raise ConfigError(
                f"{_backup(file)} is there from an earlier time; move it away: it would be lost"
            )
