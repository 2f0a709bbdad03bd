"""The web as a tool: listed hosts, redirects checked again, private addresses refused, nothing endless."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.agent.tool import Action, ToolError
from dougong.agent.tools import http
from dougong.agent.tools.addresses import Allowed, is_public
from dougong.base import DougongError


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path, _, rest = self.path.partition("?")
        if path == "/to":
            self.answer(302, b"", {"Location": rest})
        elif path == "/again":
            self.answer(302, b"", {"Location": "/again"})
        elif path == "/missing":
            self.answer(404, b"no such\npage")
        elif path == "/image":
            self.answer(200, b"\x89PNG", {"Content-Type": "image/png"})
        elif path == "/latin":
            self.answer(200, "café".encode("latin-1"), {"Content-Type": "text/plain; charset=latin-1"})
        elif path == "/packed":
            self.answer(200, b"\x1f\x8b", {"Content-Encoding": "gzip"})
        elif path == "/endless":
            self.drip(b"x" * 65536, 0.0)
        elif path == "/slow":
            self.drip(b"x", 0.1)
        else:
            self.answer(200, f"{self.command} {self.path} {self.headers['Host']}".encode())

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/moved":
            return self.answer(303, b"", {"Location": "/got"})
        if self.path.startswith("/on?"):
            return self.answer(308, b"", {"Location": self.path[4:]})
        if self.path == "/kept":
            return self.answer(307, b"", {"Location": "/echo"})
        return self.answer(200, self.headers["Content-Type"].encode() + b" " + body)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": "text/plain", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, piece: bytes, pause: float) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(200):
                self.wfile.write(piece)
                time.sleep(pause)
        except OSError:
            pass  # the client had enough

    def log_message(self, format: str, *args: object) -> None:
        pass


class Site:
    """A site on this machine."""

    def __init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self.port = self.server.server_port
        self.host = f"127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.server.shutdown()


@pytest.fixture
def get(site) -> Action:
    return http([site.host], seconds=1.0, size=100_000)[0]


def test_pages(site, get):
    assert get.call({"url": site.url("/a?b=c d".replace(" ", "%20"))}) == f"GET /a?b=c%20d {site.host}"
    assert get.call({"url": site.url("/latin")}) == "café"
    assert get.call({"url": site.url("/to?/x")}).startswith("GET /x")
    assert get.call({"url": site.url("/你好")}) == f"GET /%E4%BD%A0%E5%A5%BD {site.host}"


def test_what_is_sent(site):
    post = http([site.host])[1]
    assert post.call({"url": site.url("/"), "json": {"a": "é"}}) == 'application/json {"a": "é"}'
    assert post.call({"url": site.url("/"), "text": "hi"}) == "text/plain; charset=utf-8 hi"
    assert post.call({"url": site.url("/moved"), "text": "hi"}).startswith("GET /got")
    assert post.call({"url": site.url("/kept"), "text": "hi"}) == "text/plain; charset=utf-8 hi"
    for body in ({}, {"json": {}, "text": ""}):
        with pytest.raises(ToolError, match="the body is missing or there are two"):
            post.call({"url": site.url("/"), **body})
    assert len(http([site.host], post=False)) == 1


def test_what_is_sent_goes_to_no_other_host_than_was_asked(site):
    other = Site()
    try:
        get, post = http([site.host, other.host])
        assert get.call({"url": site.url(f"/to?{other.url('/x')}")}).startswith("GET /x")
        with pytest.raises(ToolError, match="leads what was sent on to"):
            post.call({"url": site.url(f"/on?{other.url('/echo')}"), "text": "the approved body"})
        assert post.call({"url": site.url("/on?/echo"), "text": "hi"}).endswith("hi")
    finally:
        other.server.shutdown()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/missing", "status 404: no such page"),
        ("/image", "'image/png' of 4 bytes, not text"),
        ("/packed", "packed as 'gzip'"),
        ("/endless", "more than 100000 bytes"),
        ("/slow", "longer than 1 seconds"),
        ("/again", "more than 5 redirects"),
        ("/to?http://127.0.0.1:1/", "port 1, is not allowed"),
        ("/to?http://169.254.169.254/latest", "'169.254.169.254', port 80, is not allowed"),
        ("/to?file:///etc/passwd", "is not supported"),
        ("/to?//example.com/", "'example.com', port 80, is not allowed"),
    ],
)
def test_what_is_refused_on_the_way(site, get, path, said):
    with pytest.raises(ToolError, match=said):
        get.call({"url": site.url(path)})


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://127.0.0.1/", "http:/x", "http://", "127.0.0.1", "http://a b/", "http://x\ny/",
        "http://user@127.0.0.1/", "http://127.0.0.1\\@example.com/", "http://[::1", "http://127.0.0.1:99999/",
        "http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://localhost/", "http://[::ffff:127.0.0.1]/",
        "http://example.com/", "gopher://127.0.0.1/", "javascript:1", "http://127.0.0.1:1/", "http://０x7f.1/",
    ],
)  # fmt: skip
def test_addresses_that_are_refused(get, url):
    with pytest.raises(ToolError, match="http_get: "):
        get.call({"url": url})


def resolves(monkeypatch, *addresses: str) -> list[str]:
    """Let every name lead to `addresses`, and note which names were asked for."""
    asked: list[str] = []

    def answer(name: str, port: int, **_: object) -> list[tuple]:
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "fd00::1", "fe80::1",
                "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1", "::",
                "::7f00:1", "::ffff:0:7f00:1", "64:ff9b:1::7f00:1", "fec0::1", "3fff::1", "5f00::1"],
)  # fmt: skip
def test_a_name_may_not_lead_to_a_private_address(monkeypatch, address):
    resolves(monkeypatch, "93.184.216.34", address)
    with pytest.raises(DougongError, match="a private address that is not allowed"):
        Allowed(["example.com"]).reach("example.com", 80)


def test_listed_networks_are_private_addresses_that_are_meant(monkeypatch):
    resolves(monkeypatch, "10.1.2.3")
    assert Allowed(["wiki.corp", "10.0.0.0/8"]).reach("wiki.corp", 443) == [ipaddress.ip_address("10.1.2.3")]
    with pytest.raises(DougongError, match="not allowed"):
        Allowed(["wiki.corp", "192.168.0.0/16"]).reach("wiki.corp", 443)
    resolves(monkeypatch, "127.0.0.1")
    assert Allowed(["localhost:8000"]).reach("localhost", 8000)
    with pytest.raises(DougongError, match="not allowed"):
        Allowed(["localhost:8000", "evil.com:8000"]).reach("evil.com", 8000)


def test_a_name_that_changes_its_mind_is_asked_once(monkeypatch, site):
    """DNS rebinding: after the check the address is used, the name is not resolved again."""
    asked = resolves(monkeypatch, "93.184.216.34")
    reached: list[str] = []

    def create(address, timeout):
        reached.append(address[0])
        held = socket.socket()
        held.settimeout(timeout)
        held.connect(("127.0.0.1", site.port))
        return held

    monkeypatch.setattr(socket, "create_connection", create)
    assert http(["example.com"])[0].call({"url": "http://Example.COM./x"}) == "GET /x example.com"
    assert asked == ["example.com"] and reached == ["93.184.216.34"]


@pytest.fixture(scope="module")
def secure(tmp_path_factory) -> Iterator[tuple[int, str]]:
    """The port of a site over TLS, and the file of its certificate, which names localhost and nothing else."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "certificate.pem")
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(made, check=True, capture_output=True)
    site = Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    yield site.port, certificate
    site.server.shutdown()


def test_certificates_are_checked_against_the_name(secure, monkeypatch):
    port, certificate = secure
    get = http([f"localhost:{port}", f"127.0.0.1:{port}"])[0]
    with pytest.raises(ToolError, match="SSLCertVerificationError"):
        get.call({"url": f"https://localhost:{port}/"})
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    assert get.call({"url": f"https://localhost:{port}/x"}) == f"GET /x localhost:{port}"
    with pytest.raises(ToolError, match="leads from https to"):  # where it would be read on the way
        get.call({"url": f"https://localhost:{port}/to?http://localhost:{port}/"})
    with pytest.raises(ToolError, match="SSLCertVerificationError"):  # the address is not what it names
        get.call({"url": f"https://127.0.0.1:{port}/"})


def test_names_and_ports():
    allowed = Allowed(["example.com", "*.example.org", "api.example.net:8443", "Bücher.de"])
    for name, port in [
        ("example.com", 80),
        ("a.b.example.org", 443),
        ("api.example.net", 8443),
        ("xn--bcher-kva.de", 80),
    ]:
        allowed.check_name(name, port)
    for name, port in [
        *(("example.com", 22), ("www.example.com", 80), ("example.org", 80), ("badexample.org", 80)),
        *(("api.example.net", 443), ("example.com.evil.net", 80), ("", 80)),
    ]:
        with pytest.raises(DougongError, match="is not allowed"):
            allowed.check_name(name, port)


@pytest.mark.parametrize("host", ["", "*", "*.", "a b", "http://x", "x:0", "x:99999", "x:y", "a/b"])
def test_lists_that_are_wrong(host):
    with pytest.raises(DougongError, match="the allowed host"):
        Allowed([host])


def test_no_list():
    with pytest.raises(DougongError, match="http allows no host"):
        http([])
    with pytest.raises(DougongError, match="expected a list"):
        http("example.com")
    with pytest.raises(DougongError, match="0 seconds"):
        http(["example.com"], seconds=0)


def test_the_open_internet_of_ipv6_is_public():
    for address in ("2606:4700:4700::1111", "2a00:1450:4001:80b::200e", "2001:4860:4860::8888", "64:ff9b::808:808"):
        assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_an_address_that_carries_another_is_as_public_as_that(address):
    number = int(address)
    mapped = ipaddress.IPv6Address(0xFFFF << 32 | number)
    sixtofour = ipaddress.IPv6Address(0x2002 << 112 | number << 80)
    nat64 = ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number)
    assert is_public(mapped) == is_public(sixtofour) == is_public(nat64) == is_public(address)


def test_hosts_that_never_answer_share_the_seconds(monkeypatch):
    given: list[float] = []

    def create(address: tuple[str, int], timeout: float) -> socket.socket:
        given.append(timeout)
        time.sleep(min(timeout, 0.2))
        raise TimeoutError("no answer")

    resolves(monkeypatch, *(f"93.184.216.{last}" for last in range(1, 60)))
    monkeypatch.setattr(socket, "create_connection", create)
    with pytest.raises(ToolError, match=r"longer than 0\.5 seconds|cannot be fetched"):
        http(["example.com"], seconds=0.5)[0].call({"url": "http://example.com/"})
    assert given == sorted(given, reverse=True) and len(given) < 59  # each has what is left, no more


def test_a_port_taken_by_no_one():
    with pytest.raises(ToolError, match="cannot be fetched: ConnectionRefusedError"):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = taken.getsockname()[1]
        http([f"127.0.0.1:{port}"])[0].call({"url": f"http://127.0.0.1:{port}/"})
