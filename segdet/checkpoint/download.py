"""Fetching a file to this machine, whole and checked or not at all."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.request
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

from segdet.errors import CheckpointError
from segdet.utils.writing import write_atomically

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte

# Beginnings of checksums that publishers put into file names.
_CHECKSUMS = (
    ("md5", re.compile(r"_([0-9a-f]{6})\.pkl$")),  # detectron2: model_final_280758.pkl
    ("sha256", re.compile(r"-([0-9a-f]{8,64})\.pth$")),  # PyTorch: mobilenet_v2-b0353104.pth
)


def download(url: str, path: Path, *, timeout: float = _TIMEOUT) -> None:
    """Download a file; where that fails there is no file, and no part of one.

    A checksum in the file's name is compared with the content.

    Args:
        url: http or https.
        path: where it goes; folders are made.
        timeout: seconds to wait for the next bytes.

    Raises:
        CheckpointError: no connection, no such file, a transfer that breaks off, another checksum.
    """
    if not url.startswith(("http://", "https://")):
        raise CheckpointError(f"{url}: only http and https are downloaded")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opener = urllib.request.build_opener(SafeRedirects)
        with opener.open(url, timeout=timeout) as response:
            write_atomically(path, lambda file: _copy(response, file, url))
    except CheckpointError:
        raise
    except (http.client.HTTPException, OSError, ValueError) as error:  # ValueError: http://[
        raise CheckpointError(
            f"{url}: cannot be downloaded ({error}). Try again where there is a network, or put "
            f"the file at {path}"
        ) from error


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows an address to https and from http to http; never from https to anything else."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to make instead; raises CheckpointError for one not to be made."""
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise CheckpointError(f"{req.full_url}: leads to {newurl}, of another protocol")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _copy(response: http.client.HTTPResponse, file: BinaryIO, url: str) -> None:
    kind, expected = checksum_in(url)
    digest = hashlib.new(kind, usedforsecurity=False)
    size = int(response.headers.get("Content-Length") or 0)
    name = PurePosixPath(urlsplit(url).path).name
    received = 0
    with tqdm(total=size or None, unit="B", unit_scale=True, desc=name, disable=None) as bar:
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if received < size:
        raise CheckpointError(f"{url}: broke off after {received} of {size} bytes; try again")
    found = digest.hexdigest()
    if not found.startswith(expected):
        raise CheckpointError(
            f"{url}: the name promises the {kind} checksum {expected}..., what came has "
            f"{found[: len(expected)]}...; it was thrown away"
        )


def checksum_in(url: str) -> tuple[str, str]:
    """The kind of checksum that a file's name has, and how it begins; ("md5", "") without one."""
    for kind, pattern in _CHECKSUMS:
        if found := pattern.search(urlsplit(url).path):
            return kind, found[1]
    return "md5", ""
