"""Where the weights that a config names lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl, urlencode, urlsplit

from segdet.checkpoint.download import download
from segdet.errors import CheckpointError

MIRROR = "SEGDET_WEIGHTS"  # environment variable: the folder that stands for the network
DOWNLOAD = "SEGDET_DOWNLOAD"  # environment variable: 1 downloads what is not found
CACHE = "SEGDET_CACHE"  # environment variable: the folder of downloads, by default ~/.cache/segdet
DETECTRON2_URL = "https://dl.fbaipublicfiles.com/detectron2/"
DETECTRON_URL = "https://dl.fbaipublicfiles.com/detectron/"
IMAGENET_PRETRAINED = {  # catalog://ImageNetPretrained/NAME -> path below DETECTRON_URL
    "MSRA/R-50": "ImageNetPretrained/MSRA/R-50.pkl",
    "MSRA/R-101": "ImageNetPretrained/MSRA/R-101.pkl",
    "FAIR/R-50-GN": "ImageNetPretrained/47261647/R-50-GN.pkl",
    "FAIR/R-101-GN": "ImageNetPretrained/47592356/R-101-GN.pkl",
    "FAIR/X-101-32x8d": "ImageNetPretrained/20171220/X-101-32x8d.pkl",
    "FAIR/X-101-64x4d": "ImageNetPretrained/FBResNeXt/X-101-64x4d.pkl",
    "FAIR/X-152-32x8d-IN5k": "ImageNetPretrained/25093814/X-152-32x8d-IN5k.pkl",
}


def locate(address: str, *, may_download: bool | None = None) -> tuple[Path, bool]:
    """The local file that an address means.

    Args:
        address: a path, `detectron2://X`, `catalog://X` or an http(s) URL, possibly with
            `?matching_heuristics=True` behind it. What is no path is looked up in the folder that
            the environment variable SEGDET_WEIGHTS names, under X, and then among the downloads.
        may_download: whether it is downloaded where it is not found; None: if the environment
            variable SEGDET_DOWNLOAD is 1.

    Returns:
        The path, and whether suffix matching was asked for.

    Raises:
        CheckpointError: no such file, no such address, or a query that means nothing.
    """
    if os.path.isfile(address):  # False, too, of what can be no path
        return Path(address), False
    plain, _, query = address.partition("?")
    is_url = plain.startswith(("http://", "https://"))
    by_suffix = _wants_suffix_matching(address, query, other_keys_allowed=is_url)
    url, names = _mirrored_as(plain)
    if is_url and url:
        url += _other_options(query)  # some servers give a page instead of the file without them
    if not names:
        path = Path(plain).expanduser()
        if not os.path.isfile(path):
            raise CheckpointError(f"{str(path)[:500]}: no such file")
        return path, by_suffix
    if any(name.startswith("/") or ".." in PurePosixPath(name).parts for name in names):
        raise CheckpointError(
            f"{plain}: an address with .. in it or an absolute path is not looked up"
        )
    mirror = os.environ.get(MIRROR)
    places = [Path(mirror) / name for name in names] if mirror else []
    cached = _cached_at(url) if url else None
    for place in [*places, *([cached] if cached else [])]:
        if place.is_file():
            return place, by_suffix
    may_download = os.environ.get(DOWNLOAD) == "1" if may_download is None else may_download
    if may_download and url and cached:
        download(url, cached)
        return cached, by_suffix
    raise CheckpointError(_not_here(plain, url, names[0], mirror))


def _not_here(plain: str, url: str | None, name: str, mirror: str | None) -> str:
    switch = f", or set {DOWNLOAD}=1 to download it" if url else ""
    if mirror:
        return (
            f"{plain}: not in the folder {MIRROR}={mirror}; put {url or 'the file'} at "
            f"{Path(mirror) / name}{switch}"
        )
    return (
        f"{plain}: weights are not downloaded while running; put {url or 'the file'} at "
        f"SOME_FOLDER/{name} and set {MIRROR}=SOME_FOLDER{switch}"
    )


def _cached_at(url: str) -> Path:
    """Where the download of a URL lies: below the cache folder, by host and path."""
    folder = os.environ.get(CACHE)
    if not folder:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segdet"
    parts = urlsplit(url)
    path = PurePosixPath(parts.netloc.replace(":", "_")) / parts.path.lstrip("/")
    if ".." in path.parts:
        raise CheckpointError(f"{url}: an address with .. in it is not looked up")
    return Path(folder) / path


def _wants_suffix_matching(address: str, query: str, *, other_keys_allowed: bool) -> bool:
    options = dict(parse_qsl(query, keep_blank_values=True))
    answer = options.pop("matching_heuristics", "False")
    if answer not in ("True", "False") or (options and not other_keys_allowed):
        raise CheckpointError(f"{address}: the only query known is ?matching_heuristics=True")
    return answer == "True"


def _other_options(query: str) -> str:
    options = parse_qsl(query, keep_blank_values=True)
    others = [(key, value) for key, value in options if key != "matching_heuristics"]
    return f"?{urlencode(others)}" if others else ""


def _mirrored_as(address: str) -> tuple[str | None, list[str]]:
    """The original URL and the places in the mirror, best first; none for a path."""
    for scheme in ("detectron2://", DETECTRON2_URL):
        if address.startswith(scheme):
            name = address.removeprefix(scheme)
            return DETECTRON2_URL + name, [name, f"detectron2/{name}"]
    if address.startswith("catalog://"):
        name = address.removeprefix("catalog://")
        official = IMAGENET_PRETRAINED.get(name.removeprefix("ImageNetPretrained/"))
        if official is None:
            return None, [f"{name}.pkl"]
        return DETECTRON_URL + official, [f"{name}.pkl", official]
    if address.startswith(("http://", "https://")):
        try:
            path = urlsplit(address).path.lstrip("/")
        except ValueError as error:
            raise CheckpointError(f"{address}: is no address: {error}") from None
        return address, [path, Path(path).name]
    return None, []
