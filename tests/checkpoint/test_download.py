"""Downloads, from a server on this machine that misbehaves."""

import hashlib
import io
import threading
import time
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request

import pytest

from segdet.checkpoint.download import SafeRedirects, checksum_in, download
from segdet.errors import CheckpointError

CONTENT = bytes(range(256)) * 8192  # 2 MiB: two chunks
MD5, SHA256 = (hashlib.new(kind, CONTENT).hexdigest() for kind in ("md5", "sha256"))


REDIRECTS = {
    "moved.pkl": "/a.pkl",
    "to_file.pkl": "file:///etc/hostname",
    "to_ftp.pkl": "ftp://127.0.0.1/a.pkl",
    "to_https.pkl": "https://127.0.0.1:1/a.pkl",  # where nobody answers
    "to_nowhere.pkl": "http://[x",
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        if name == "gone.pkl":
            self.send_error(404)
        elif name in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[name])
            self.end_headers()
        else:
            self.send_response(200)
            if name != "unsized.pkl":
                self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            whole = name not in ("cut.pkl", "stalled.pkl")
            self.wfile.write(CONTENT if whole else CONTENT[: len(CONTENT) // 2])
            if name == "stalled.pkl":
                self.wfile.flush()
                time.sleep(2)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "name",
    [
        "a.pkl",
        "moved.pkl",
        "unsized.pkl",
        f"model_final_{MD5[:6]}.pkl",
        f"m-{SHA256[:8]}.pth",
        "a.pkl?dl=1",
    ],
)
def test_a_whole_file(server, tmp_path, name):
    path = tmp_path / "new" / "a.pkl"
    download(f"{server}/{name}", path)
    assert path.read_bytes() == CONTENT
    assert files(tmp_path) == [path]


@pytest.mark.parametrize(
    "name, message",
    [
        ("cut.pkl", f"broke off after {len(CONTENT) // 2} of {len(CONTENT)} bytes"),
        ("stalled.pkl", "cannot be downloaded .*timed out"),
        ("gone.pkl", "cannot be downloaded .*404"),
        ("to_file.pkl", "cannot be downloaded .*Redirection"),
        ("to_ftp.pkl", "leads to ftp:.*, of another protocol"),
        ("to_https.pkl", "cannot be downloaded .*refused"),  # so it was followed
        ("to_nowhere.pkl", "cannot be downloaded .*IPv6"),
        ("model_final_000000.pkl", "promises the md5 checksum 000000"),
        ("m-00000000.pth", "promises the sha256 checksum 00000000"),
    ],
)
def test_a_failure_leaves_nothing_behind(server, tmp_path, name, message):
    with pytest.raises(CheckpointError, match=message) as error:
        download(f"{server}/{name}", tmp_path / "a.pkl", timeout=0.5)
    assert f"{server}/{name}" in str(error.value)
    assert files(tmp_path) == []


def test_https_never_becomes_http():
    request = Request("https://example.org/a.pkl")
    moved = (io.BytesIO(), 302, "Found", HTTPMessage())
    with pytest.raises(CheckpointError, match=r"leads to http://example\.org/a\.pkl, of"):
        SafeRedirects().redirect_request(request, *moved, "http://example.org/a.pkl")


def test_a_failure_keeps_the_file_that_was_there(server, tmp_path):
    (tmp_path / "a.pkl").write_bytes(b"old")
    with pytest.raises(CheckpointError):
        download(f"{server}/cut.pkl", tmp_path / "a.pkl")
    assert (tmp_path / "a.pkl").read_bytes() == b"old"


def test_without_a_network(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port = server.server_port
    message = rf"cannot be downloaded .*network, or put the file at {tmp_path}/a\.pkl"
    with pytest.raises(CheckpointError, match=message):
        download(f"http://127.0.0.1:{port}/a.pkl", tmp_path / "a.pkl")
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        download(f"{server}/a.pkl", tmp_path / "file" / "a.pkl")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://a/b", "/etc/hostname", "http:a"])
def test_other_protocols_are_refused(tmp_path, url):
    with pytest.raises(CheckpointError, match="only http and https"):
        download(url, tmp_path / "a.pkl")


@pytest.mark.parametrize(
    "name, checksum",
    [
        ("model_final_280758.pkl", ("md5", "280758")),
        ("model_0039999_e76410.pkl", ("md5", "e76410")),
        ("mobilenet_v2-b0353104.pth", ("sha256", "b0353104")),
        ("R-50.pkl", ("md5", "")),
        ("X-101-32x8d.pkl", ("md5", "")),
    ],
)
def test_checksums_in_names(name, checksum):
    assert checksum_in(f"https://example.org/x/{name}?dl=1") == checksum
