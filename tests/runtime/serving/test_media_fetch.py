"""Where media may come from. Every request goes to a server of the test's own, on loopback."""

import asyncio
import base64
import contextlib
import gzip
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rediprune.runtime.serving.api_error import ApiError
from rediprune.runtime.serving.media_fetch import MediaPolicy, fetch

PIXEL = base64.b64encode(b"not a picture, but bytes").decode()


def got(url: str, policy: MediaPolicy, addresses: list[str] | None = None) -> bytes:
    async def resolver(host: str, port: int) -> list[str]:
        if addresses is None:
            raise OSError("no such host")
        return addresses

    return asyncio.run(fetch(url, policy, "field", resolver))


def refusal(url: str, policy: MediaPolicy, addresses: list[str] | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        got(url, policy, addresses)
    assert caught.value.param == "field" and caught.value.message.startswith("field")
    return caught.value


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers["Host"]))  # pyright: ignore[reportAttributeAccessIssue]
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "/picture")
            self.end_headers()
        elif self.path == "/packed":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(gzip.compress(bytes(100_000)))
        elif self.path in ("/declared", "/nonsense"):
            self.send_response(200)
            self.send_header("Content-Length", "5000" if self.path == "/declared" else "-1")
            self.end_headers()
            self.wfile.write(b"bytes")
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            while True:
                try:
                    self.wfile.write(b"x" * 65536)
                except OSError:
                    return
        elif self.path.startswith("/picture"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"bytes")
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.seen = []  # pyright: ignore[reportAttributeAccessIssue]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


LOCAL = MediaPolicy(domains=("media.test", ".cdn.test"), private_addresses=True, max_bytes=1000, timeout=5)


def test_a_data_uri_is_its_bytes() -> None:
    assert got(f"data:image/png;base64,{PIXEL}", MediaPolicy()) == b"not a picture, but bytes"
    assert got(f"data:;base64,{PIXEL}", MediaPolicy()) == b"not a picture, but bytes"
    assert got(f"DATA:image/png;charset=utf-8;BASE64,{PIXEL}", MediaPolicy()) == b"not a picture, but bytes"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64,a*b=", "base64"),
        ("data:image/png;base64,", "empty"),
        (f"data:video/jpeg;base64,{PIXEL}", "not supported"),
        (f"data:image/svg+xml;base64,{PIXEL}", "not supported"),
        ("ftp://media.test/a.png", "data: URI"),
        ("/etc/passwd", "data: URI"),
        ("C:\\a.png", "not a URL"),
        ("", "data: URI"),
        ("http://media.test\\@127.0.0.1/", "not a URL"),
        ("http://media.test/a b", "not a URL"),
        ("http://media.test/a\r\nHost: x", "not a URL"),
        ("http://user:pass@media.test/a", "user name"),
        ("http://[::1/a", "not a URL"),
        ("http://media.test:99999/a", "not a URL"),
        ("http://other.test/a", "not one of"),
        ("http://cdn.test/a", "not one of"),
        ("http://media.test.evil.test/a", "not one of"),
        ("http:///a", "not one of"),
    ],
)
def test_what_is_no_url_to_follow_is_refused(url: str, words: str) -> None:
    assert words in refusal(url, LOCAL, ["127.0.0.1"]).message


def test_too_large_is_413() -> None:
    big = base64.b64encode(b"x" * 1001).decode()
    assert refusal(f"data:image/png;base64,{big}", LOCAL).status == 413
    fits = base64.b64encode(b"x" * 1000).decode()
    assert len(got(f"data:image/png;base64,{fits}", LOCAL)) == 1000


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b:1::7f00:1",
        "fec0::1",
        "2001:db8::1",
        "2001:0:0:0:0:0:80ff:fffe",  # Teredo for 127.0.0.1
        "192.0.2.1",
        "198.18.0.1",
        "240.0.0.1",
        "0177.0.0.1",
        "2130706433",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "ff02::1",
        "not an address",
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    policy = MediaPolicy(domains=("media.test",))
    assert "not public" in refusal("https://media.test/a.png", policy, [address]).message
    # One private address among public ones is enough: which one is dialled is not the client's to choose.
    assert "not public" in refusal("https://media.test/a.png", policy, ["93.184.216.34", address]).message


ADDRESSES = (
    *("2130706433", "0x7f000001", "127.1", "[::1]", "127.0.0.1", "0177.0.0.1", "0", "[::ffff:7f00:1]", "[::]"),
    *("127.0.0.1.", "0x7f.1", "[0:0:0:0:0:ffff:127.0.0.1]", "localhost", "LOCALHOST.", "①②⑦.⓪.⓪.①"),
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_in_a_url_are_no_domains(address: str) -> None:
    assert "not one of" in refusal(f"http://{address}/", LOCAL, ["127.0.0.1"]).message


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_that_is_allowed_by_name_must_still_be_public(address: str) -> None:
    """With the system's own resolver, which reads 2130706433 and 0x7f.1 as addresses."""
    name = address.strip("[]").rstrip(".").lower()
    policy = MediaPolicy(domains=(name,))
    with pytest.raises(ApiError) as caught:
        asyncio.run(fetch(f"http://{address}:9/", policy, "field"))
    assert "not public" in caught.value.message or "cannot be resolved" in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "http://media.test@127.0.0.1/",
        "http://127.0.0.1#@media.test/",
        "http://127.0.0.1?@media.test/",
        "http://127.0.0.1\\.media.test/",
        "http://media.test\\@127.0.0.1/",
        "http:\\\\media.test/",
        "http:///media.test/",
        "http:media.test/a",
        "//media.test/a",
        "http://media.test%2f@127.0.0.1/",
        "http://media.test%00.evil.test/",
        "http://evil.test／media.test/",
        "http://media.test:80:80/",
        "http://[media.test]/",
        "gopher://media.test/",
        "jar:http://media.test/",
    ],
)
def test_parsers_are_not_played_against_each_other(url: str, host: ThreadingHTTPServer) -> None:
    seen = len(host.seen)  # pyright: ignore[reportAttributeAccessIssue]
    refusal(url, LOCAL, ["127.0.0.1"])
    assert len(host.seen) == seen  # pyright: ignore[reportAttributeAccessIssue]


def test_no_domains_means_data_only() -> None:
    assert "--allowed-media-domains" in refusal("https://media.test/a.png", MediaPolicy(), ["93.184.216.34"]).message


def test_the_resolved_address_is_dialled_and_the_host_is_named(host: ThreadingHTTPServer) -> None:
    port = host.server_address[1]
    assert got(f"http://media.test:{port}/picture?size=1", LOCAL, ["127.0.0.1"]) == b"bytes"
    assert got(f"http://a.cdn.test:{port}/picture", LOCAL, ["127.0.0.1"]) == b"bytes"
    assert host.seen[-2:] == [  # pyright: ignore[reportAttributeAccessIssue]
        ("/picture?size=1", f"media.test:{port}"),
        ("/picture", f"a.cdn.test:{port}"),
    ]


def test_a_name_is_resolved_once(host: ThreadingHTTPServer) -> None:
    """DNS rebinding: a name that is public when it is checked and private when it is dialled."""
    answers = iter([["127.0.0.1"], ["10.0.0.1"]])

    async def resolver(name: str, port: int) -> list[str]:
        return next(answers)

    url = f"http://media.test:{host.server_address[1]}/picture"
    assert asyncio.run(fetch(url, LOCAL, "field", resolver)) == b"bytes"
    assert next(answers) == ["10.0.0.1"]


def test_redirects_faults_and_endless_bodies(host: ThreadingHTTPServer) -> None:
    base = f"http://media.test:{host.server_address[1]}"
    assert "redirects" in refusal(f"{base}/redirect", LOCAL, ["127.0.0.1"]).message
    assert "404" in refusal(f"{base}/nothing", LOCAL, ["127.0.0.1"]).message
    assert refusal(f"{base}/endless", LOCAL, ["127.0.0.1"]).status == 413
    assert "cannot be resolved" in refusal(f"{base}/picture", LOCAL, None).message
    assert "does not answer" in refusal("http://media.test:1/picture", LOCAL, ["127.0.0.1"]).message


def test_what_a_host_sends_is_bounded_whatever_it_says(host: ThreadingHTTPServer) -> None:
    base = f"http://media.test:{host.server_address[1]}"
    assert "compresses" in refusal(f"{base}/packed", LOCAL, ["127.0.0.1"]).message
    assert refusal(f"{base}/declared", LOCAL, ["127.0.0.1"]).status == 413
    assert refusal(f"{base}/nonsense", LOCAL, ["127.0.0.1"]).status == 400
    hurried = replace(LOCAL, timeout=0.5)
    began = time.monotonic()
    assert "does not answer" in refusal(f"{base}/slow", hurried, ["127.0.0.1"]).message
    assert time.monotonic() - began < 3


def test_a_proxy_of_the_environment_is_not_asked(host: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert got(f"http://media.test:{host.server_address[1]}/picture", LOCAL, ["127.0.0.1"]) == b"bytes"


def test_files_below_the_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "a picture.png").write_bytes(b"bytes")
    (folder / "big").write_bytes(b"x" * 1001)
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    policy = MediaPolicy(folder=folder, max_bytes=1000)
    assert got(f"file://{folder}/a%20picture.png", policy) == b"bytes"
    assert got(f"file://localhost{folder}/a%20picture.png", policy) == b"bytes"
    outside = [f"file://{tmp_path}/secret", f"file://{folder}/../secret", f"file://{folder}/%2e%2e/secret"]
    for url in (*outside, f"file://{folder}/link", f"file://{folder}/none", f"file://{folder}", "file:///dev/zero"):
        assert "no such file" in refusal(url, policy).message
    assert refusal(f"file://{folder}/big", policy).status == 413
    assert "--allowed-local-media-path" in refusal(f"file://{folder}/big", MediaPolicy()).message
    assert "local file" in refusal(f"file://elsewhere{folder}/big", policy).message


@given(st.text(max_size=200))
def test_no_text_is_a_fault(text: str) -> None:
    try:
        got(text, MediaPolicy())
    except ApiError as error:
        assert error.status in (400, 413)
    else:
        raise AssertionError("no text without a data: URI has bytes")
