import pytest

from segdet.checkpoint.catalog import (
    CACHE,
    DETECTRON2_URL,
    DOWNLOAD,
    IMAGENET_PRETRAINED,
    MIRROR,
    locate,
)
from segdet.errors import CheckpointError

R50 = "ImageNetPretrained/MSRA/R-50.pkl"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE, str(folder))
    monkeypatch.delenv(DOWNLOAD, raising=False)
    return folder


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv(MIRROR, str(folder))
    return folder


def put(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_paths(tmp_path, monkeypatch):
    path = put(tmp_path, "a.pth")
    assert locate(str(path)) == (path, False)
    assert locate(f"{path}?matching_heuristics=True") == (path, True)
    assert locate(f"{path}?matching_heuristics=False") == (path, False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/a.pth") == (path, False)


def test_a_question_mark_may_be_part_of_a_name(tmp_path):
    path = put(tmp_path, "a?b.pth")
    assert locate(str(path)) == (path, False)


@pytest.mark.parametrize(
    "address, place",
    [
        (f"detectron2://{R50}", R50),
        (f"detectron2://{R50}", f"detectron2/{R50}"),
        (DETECTRON2_URL + R50, R50),
        (DETECTRON2_URL + R50, f"detectron2/{R50}"),
        ("catalog://ImageNetPretrained/MSRA/R-50", R50),
        ("catalog://ImageNetPretrained/FAIR/R-50-GN", "ImageNetPretrained/FAIR/R-50-GN.pkl"),
        ("catalog://ImageNetPretrained/FAIR/R-50-GN", "ImageNetPretrained/47261647/R-50-GN.pkl"),
        ("catalog://Caffe2Detectron/COCO/1/x", "Caffe2Detectron/COCO/1/x.pkl"),
        ("https://example.org/s/1/a.pth?dl=1", "s/1/a.pth"),
        ("https://example.org/s/1/a.pth?dl=1", "a.pth"),
    ],
)
def test_the_mirror_stands_for_the_network(mirror, address, place):
    path = put(mirror, place)
    assert locate(address) == (path, False)


def test_suffix_matching_of_an_address(mirror):
    path = put(mirror, "a.pth")
    assert locate("detectron2://a.pth?matching_heuristics=True") == (path, True)
    assert locate("https://example.org/a.pth?dl=1&matching_heuristics=True") == (path, True)


def test_an_absent_file_is_named_with_its_place_and_origin(mirror):
    message = f"put {DETECTRON2_URL}{R50} at {mirror / R50}"
    with pytest.raises(CheckpointError, match=message):
        locate(f"detectron2://{R50}")
    name = "ImageNetPretrained/FAIR/R-101-GN"
    with pytest.raises(CheckpointError, match=IMAGENET_PRETRAINED["FAIR/R-101-GN"]):
        locate(f"catalog://{name}")
    with pytest.raises(CheckpointError, match=f"put the file at {mirror}/Caffe2Detectron/x.pkl"):
        locate("catalog://Caffe2Detectron/x")


def test_without_a_mirror_the_error_says_how_to_make_one(monkeypatch):
    monkeypatch.delenv(MIRROR, raising=False)
    message = f"put {DETECTRON2_URL}{R50} at SOME_FOLDER/{R50} and set SEGDET_WEIGHTS=SOME_FOLDER"
    with pytest.raises(CheckpointError, match=message):
        locate(f"detectron2://{R50}")


def test_an_absent_path_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        locate(str(tmp_path / "nowhere.pth"))


@pytest.mark.parametrize("query", ["dl=1", "matching_heuristics=1", "matching_heuristics"])
def test_other_queries_are_refused(tmp_path, query):
    path = put(tmp_path, "a.pth")
    with pytest.raises(CheckpointError, match=r"only query known is \?matching_heuristics=True"):
        locate(f"{path}?{query}")


@pytest.fixture
def downloads(monkeypatch):
    """The downloads made, instead of making them."""
    made = []

    def download(url, path):
        made.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setattr("segdet.checkpoint.catalog.download", download)
    return made


def test_nothing_is_downloaded_unless_asked_for(monkeypatch, cache, downloads):
    monkeypatch.delenv(MIRROR, raising=False)
    with pytest.raises(CheckpointError, match="or set SEGDET_DOWNLOAD=1 to download it"):
        locate(f"detectron2://{R50}")
    monkeypatch.setenv(DOWNLOAD, "1")
    with pytest.raises(CheckpointError, match="not downloaded"):
        locate(f"detectron2://{R50}", may_download=False)
    assert downloads == []
    place = cache / "dl.fbaipublicfiles.com" / "detectron2" / R50
    assert locate(f"detectron2://{R50}?matching_heuristics=True") == (place, True)
    assert downloads == [DETECTRON2_URL + R50]
    monkeypatch.delenv(DOWNLOAD)
    assert locate(f"detectron2://{R50}") == (place, False)  # from then on it is here
    assert len(downloads) == 1


def test_what_a_server_is_asked_for_is_the_whole_address(monkeypatch, cache, downloads):
    monkeypatch.delenv(MIRROR, raising=False)
    place = cache / "example.org" / "s" / "1" / "a.pth"
    address = "https://example.org/s/1/a.pth?matching_heuristics=True&dl=1"
    assert locate(address, may_download=True) == (place, True)
    assert downloads == ["https://example.org/s/1/a.pth?dl=1"]


def test_the_mirror_comes_before_the_downloads(mirror, cache, downloads):
    place = put(mirror, R50)
    put(cache, f"dl.fbaipublicfiles.com/detectron2/{R50}")
    assert locate(f"detectron2://{R50}", may_download=True) == (place, False)
    assert downloads == []


def test_a_name_of_no_known_address_is_not_downloaded(mirror, downloads):
    with pytest.raises(CheckpointError, match=r"put the file at [^,]*$"):
        locate("catalog://Caffe2Detectron/x", may_download=True)
    assert downloads == []


@pytest.mark.parametrize("address", ["detectron2://../../a.pkl", "https://example.org/../a.pth"])
def test_downloads_stay_in_their_folder(monkeypatch, downloads, address):
    monkeypatch.delenv(MIRROR, raising=False)
    with pytest.raises(CheckpointError, match=r"an address with \.\. in it"):
        locate(address, may_download=True)
    assert downloads == []


@pytest.mark.parametrize(
    "address",
    [
        "catalog://../outside",
        "catalog://a/../../outside",
        "catalog://{folder}/outside",
        "detectron2://../outside.pkl",
        "detectron2://{folder}/outside.pkl",
        "https://example.org/a/../../outside.pkl",
    ],
)
def test_names_stay_in_the_mirror(mirror, address):
    put(mirror, "a/b.pkl")
    put(mirror.parent, "outside.pkl")
    with pytest.raises(CheckpointError, match=r"with \.\. in it or an absolute path is not looked"):
        locate(address.format(folder=mirror.parent))


def test_an_address_that_is_none(downloads):
    with pytest.raises(CheckpointError, match=r"http://\[x: is no address: "):
        locate("http://[x", may_download=True)
    assert downloads == []


def test_an_address_that_is_no_path_at_all():
    with pytest.raises(CheckpointError, match="no such file"):
        locate("x" * 10_000)
