"""Pictures inside tar files ("shards"), read where they lie, on disk or at any fsspec address.

A shard is indexed once, by the headers of its members; a picture is then its bytes at a place. So
shards are as good as folders: any order, any number of workers, exact resume.
"""

from __future__ import annotations

import functools
import glob
import io
import os
import re
import tarfile
from pathlib import Path
from typing import Any

from segdet.data.defects import Defect

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MEMBER = re.compile(r"(.+\.tar)!/(.+)@(\d+)\+(\d+)")


def is_address(path: str) -> bool:
    """Whether a path is an address for fsspec, such as s3://bucket/train.tar."""
    return "://" in path


def is_shards(root: str) -> bool:
    """Whether a folder of images is one or several tar files."""
    return root.endswith(".tar")


def member_path(root: str, name: str) -> str:
    """What a record calls a picture in shards: `SHARD.tar!/NAME@BYTE+SIZE`.

    Args:
        root: a tar file; several by `{000..127}`, as WebDataset writes it, or by `*`.
        name: of the member.

    Raises:
        Defect: the shards cannot be read, or have no such member.
    """
    members = _index(root)
    if name not in members:
        message = f"file_name {name!r} is in none of the shards {root}"
        raise Defect("image-missing", message, "file_name")
    return members[name]


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file, or of a member as `member_path` names it."""
    place = _MEMBER.fullmatch(os.fspath(path))
    if place is None:
        return Path(path).read_bytes()
    shard, begin, size = place[1], int(place[3]), int(place[4])
    if is_address(shard):
        system, inner = _file_system(shard)
        return system.cat_file(inner, start=begin, end=begin + size)
    with open(shard, "rb") as file:
        file.seek(begin)
        return file.read(size)


def source_of(path: str | os.PathLike[str]) -> str | os.PathLike[str] | io.BytesIO:
    """What a decoder opens: the path, or the bytes of a member."""
    return io.BytesIO(read_bytes(path)) if _MEMBER.fullmatch(os.fspath(path)) else path


@functools.lru_cache(maxsize=8)
def _index(root: str) -> dict[str, str]:
    """Name -> path of every member of the shards."""
    members: dict[str, str] = {}
    for shard in _shards(root):
        for name, path in _members(shard).items():
            if name in members:
                message = f"{path} and {members[name]} have the same name; keep one of them"
                raise Defect("name-twice", message, "file_name")
            members[name] = path
    return members


def _members(shard: str) -> dict[str, str]:
    try:
        with _open(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            return {
                os.path.normpath(one.name): f"{shard}!/{one.name}@{one.offset_data}+{one.size}"
                for one in tar
                if one.isfile()
            }
    except (OSError, tarfile.TarError) as error:
        message = f"{shard}: is no tar file that can be read ({error}); shards are not compressed"
        raise Defect("file-unreadable", message) from None


def _open(shard: str) -> Any:
    if not is_address(shard):
        return open(shard, "rb")
    system, inner = _file_system(shard)
    return system.open(inner, "rb")


def _shards(root: str) -> list[str]:
    """The tar files that a pattern names, in their order."""
    if braces := _BRACES.search(root):
        low, high = braces[1], braces[2]
        numbers = (f"{k:0{len(low)}}" for k in range(int(low), int(high) + 1))
        return [root[: braces.start()] + number + root[braces.end() :] for number in numbers]
    if "*" not in root:
        return [root]
    if is_address(root):
        system, inner = _file_system(root)
        found = [system.unstrip_protocol(path) for path in system.glob(inner)]
    else:
        found = glob.glob(root)
    if not found:
        raise Defect("file-missing", f"no file is named {root}")
    return sorted(found)


def _file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        import fsspec
    except ImportError:
        raise Defect("file-unreadable", f"{address} needs fsspec: pip install fsspec") from None
    try:
        return fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:  # a protocol whose package is not installed
        raise Defect("file-unreadable", f"{address}: {error}") from None
