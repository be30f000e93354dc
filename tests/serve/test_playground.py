"""The playground's files, its routes behind the gate, and what the page is told of models."""

import re

import pytest

from bedstone.serve.playground import FOLDER, HEADERS, page_files
from served import KEY, Running, saved_decoder

PAGES = ["/playground", *(f"/playground/{name}" for name in page_files() if name != "index.html")]


@pytest.fixture(scope="module")
def source(tmp_path_factory, cache):
    return str(saved_decoder(tmp_path_factory.mktemp("models") / "small"))


@pytest.fixture(scope="module")
def server(source):
    running = Running({"a-secret-name": source}, keys={"one": KEY}, playground=True)
    yield running
    running.stop()


def routes(running):
    """Every method and path of the application, found by walking it."""
    found = []
    for route in running.server.config.loaded_app._app.routes:
        path = re.sub(r"{name:path}", "a-secret-name", route.path)
        path = path.replace("{task}", "text-generation")
        found += [(method, path) for method in sorted(route.methods)]
    return found


def test_only_the_page_s_own_files_need_no_key(server):
    seen = set()
    for method, path in routes(server):
        status, headers, body = server.ask(path, {} if method == "POST" else None, method=method)
        if (method, path) in (("GET", "/health"), ("GET", "/ready")):
            continue
        if path == "/playground/":
            assert (status, headers["location"]) == (307, "../playground")
        elif path.startswith("/playground"):
            assert (method, status) == ("GET", 200), path
            assert b"a-secret-name" not in body
            seen.add(path)
        else:
            assert status == 401, (method, path)
    assert seen == set(PAGES)
    assert len(PAGES) >= 9


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_other_methods_need_a_key(server, method):
    for path in (*PAGES, "/playground/"):
        assert server.ask(path, method=method)[0] == 401


@pytest.mark.parametrize(
    "path",
    [
        "/playground/../v1/models", "/playground/%2e%2e/v1/models", "/playground/nothing.js",
        "/playground//main.js", "//playground", "/PLAYGROUND", "/playground/index.html",
        "/playground/..%2fplayground.py", "/playground/main.js/",
    ],
)  # fmt: skip
def test_no_spelling_gets_past_the_key(server, path):
    status, _, body = server.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    assert status == 401
    assert b"a-secret-name" not in body


def test_a_websocket_to_the_page_opens_nothing(server):
    status, headers, _ = server.raw(
        b"GET /playground HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Version: 13\r\n\r\n"
    )
    assert status == 200  # the page: the request to upgrade is passed over
    assert headers["content-type"].startswith("text/html")


def test_each_file_has_its_type_and_a_strict_policy(server):
    kinds = {"": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for path in PAGES:
        status, headers, body = server.ask(path)
        assert status == 200
        assert body
        assert headers["content-type"].startswith(
            kinds[path[path.rfind(".") :] if "." in path else ""]
        )
        for name, value in HEADERS.items():
            assert headers[name] == value
        assert headers["x-content-type-options"] == "nosniff"
    policy = dict(each.split(" ", 1) for each in HEADERS["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' data: blob:"
    assert "unsafe" not in HEADERS["content-security-policy"]
    assert policy["require-trusted-types-for"] == "'script'"


def test_another_host_gets_no_page_without_keys(source):
    running = Running({"small": source}, playground=True)
    try:
        assert running.ask("/playground")[0] == 200
        for path in PAGES:
            request = f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n"
            assert running.raw(request.encode())[0] == 421
        (card,) = running.ask("/v1/models")[2]["data"]
        assert card["capabilities"] == ["completion", "chat"]
        assert "question-answering" in card["prompted_tasks"]
    finally:
        running.stop()


def test_there_is_no_page_unless_it_is_wanted(source):
    running = Running({"small": source}, keys={"one": KEY})
    try:
        assert running.ask("/playground")[0] == 401
        assert running.ask("/playground", key=KEY)[0] == 404
    finally:
        running.stop()


# What would make markup of a text, run one, load something from elsewhere or keep a key.
UNSAFE = r"""innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|srcdoc|\beval\b
    |new\s+Function|setTimeout\(\s*["'`]|javascript:|localStorage|sessionStorage|indexedDB
    |document\.cookie|sendBeacon|WebSocket|importScripts|@import|\burl\(|<script(?!\ type="module")
    |\sstyle=|\son\w+="|https?://(?!www\.w3\.org/2000/svg)"""


def test_the_files_make_no_markup_of_texts_and_name_no_address():
    unsafe = re.compile(UNSAFE, re.X)
    for name, data in page_files().items():
        found = unsafe.search(data.decode())
        assert found is None, (name, found and found[0])
    for bad in ("a.innerHTML = b", "https://fonts.example", 'el("p", { style="x" })', "eval(a)"):
        assert unsafe.search(bad)


def test_what_the_files_name_is_there():
    files = page_files()
    for name, data in files.items():
        for wanted in re.findall(r'from "\./([\w.]+)"|"playground/([\w.]+)"', data.decode()):
            assert "".join(wanted) in files, (name, wanted)
    lines = [line for each in FOLDER.iterdir() for line in each.read_text().splitlines()]
    assert max(map(len, lines)) <= 100
