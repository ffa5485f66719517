"""Who may ask: keys, hosts, origins; and what stays as it is for those who may not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gemmafile.errors import BadSettings
from gemmafile.server.launch import bind, make_key, read_keys, split_address, url_of, url_with_key
from gemmafile.server.security import COOKIE, cookie_of, is_loopback
from gemmafile.settings import ServeSettings
from tests.server.running import Running, running

KEY = "sésame-1"
GUARDED = ("/props", "/v1/models", "/slots", "/metrics", "/", "/nothing", "/health/")


@pytest.fixture(scope="module")
def locked(small_path: Path) -> Iterator[Running]:
    settings = ServeSettings(
        api_keys=[KEY, "two"], cors_origins=["https://a.example, https://b.example"], allowed_hosts=["box.lan"]
    )
    with running(small_path, settings) as server:
        yield server


@pytest.mark.parametrize("path", GUARDED)
def test_everything_but_health_needs_a_key(locked: Running, path: str) -> None:
    found = locked.get(path)
    assert found.status == 401
    assert found.json["error"]["type"] == "authentication_error"
    assert "www-authenticate" in found.headers


def test_health_needs_none(locked: Running) -> None:
    assert locked.get("/health").status == 200
    assert locked.get("/v1/health").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}".encode().decode("latin-1")}, {"Authorization": "bearer two"},
        {"X-Api-Key": "two"}, {"Cookie": f"a=b; {COOKIE}={cookie_of(b'two').decode()}"},
        {"Cookie": f'other={{"a": [1, 2]}}; {COOKIE}={cookie_of(b"two").decode()}'},
    ],
)  # fmt: skip
def test_a_key_opens(locked: Running, headers: dict[str, str]) -> None:
    assert locked.get("/props", headers=headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer "}, {"Authorization": "Basic two"}, {"Authorization": "two"},
        {"Authorization": "Bearer twoo"}, {"X-Api-Key": ""}, {"X-Api-Key": "two,"}, {"Cookie": f"{COOKIE}=two"},
        {"Cookie": "\x01=;;"},
    ],
)  # fmt: skip
def test_anything_else_does_not(locked: Running, headers: dict[str, str]) -> None:
    assert locked.get("/props", headers=headers).status == 401


def test_a_browser_gets_in_by_the_address_it_was_told(locked: Running) -> None:
    assert b"<form" in locked.get("/props", headers={"Accept": "text/html"}).body
    found = locked.get("/props?a=1&key=two", headers={"Accept": "text/html"})
    assert found.status == 303
    assert found.headers["location"] == "/props?a=1"
    cookie = found.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "two" not in cookie
    assert "samesite=strict" in cookie.lower()
    assert locked.get("/props", headers={"Cookie": cookie.partition(";")[0]}).status == 200
    assert locked.get("/props?key=three", headers={"Accept": "text/html"}).status == 401
    # An address that would lead to another server.
    assert locked.get("//evil.example/?key=two").headers["location"].startswith("/evil")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:8080", "BOX.lan:1", "a.localhost"])
def test_names_of_this_server(locked: Running, host: str) -> None:
    assert locked.get("/health", headers={"Host": host}).status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", "x" * 300])
def test_other_names_are_refused(locked: Running, host: str) -> None:
    """A page of evil.example, which lets that name point here, would be of the same origin as this server."""
    found = locked.get("/health", headers={"Host": host})
    assert found.status == 403
    assert found.json["error"]["type"] == "permission_error"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "https://a.example.evil"])
def test_pages_of_other_origins_are_refused(locked: Running, origin: str) -> None:
    found = locked.post("/tokenize", {}, headers={"Origin": origin, "X-Api-Key": "two"})
    assert found.status == 403
    assert "access-control-allow-origin" not in found.headers
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert locked.request("OPTIONS", "/tokenize", headers=preflight).status == 403


def test_pages_on_the_list_may_ask(locked: Running) -> None:
    headers = {"Origin": "https://b.example", "Access-Control-Request-Method": "POST"}
    found = locked.request("OPTIONS", "/tokenize", headers=headers)
    assert found.status == 204
    assert found.headers["access-control-allow-origin"] == "https://b.example"
    found = locked.post("/tokenize", {"content": "x"}, headers={"Origin": "https://b.example", "X-Api-Key": "two"})
    assert found.status == 200
    assert found.headers["access-control-allow-origin"] == "https://b.example"
    assert found.headers["vary"] == "Origin"
    # What is wrong can be read by the page, too.
    found = locked.post("/tokenize", {"content": "x"}, headers={"Origin": "https://b.example"})
    assert (found.status, found.headers["access-control-allow-origin"]) == (401, "https://b.example")


def test_the_servers_own_page_may_ask(server: Running) -> None:
    headers = {"Origin": server.url, "Host": f"127.0.0.1:{server.port}"}
    assert server.post("/tokenize", {"content": "x"}, headers=headers).status == 200


def test_headers_that_keep_pages_apart(server: Running) -> None:
    headers = server.get("/health").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"
    assert "server" not in headers


def test_a_prefix(small_path: Path) -> None:
    with running(small_path, ServeSettings(prefix="/llm", api_keys=["k"])) as server:
        assert server.get("/llm/health").status == 200
        assert server.get("/health").status == 404
        assert server.get("/llmx/health").status == 404
        assert server.get("/llm/props").status == 401
        found = server.get("/llm/props?key=k")
        assert found.headers["location"] == "/llm/props"
        assert "Path=/llm" in found.headers["set-cookie"]
        assert server.get("/llm?key=k").headers["location"] == "/llm/?key=k"
        assert server.post("/llm/infill", {}, headers={"X-Api-Key": "k"}).status == 501


def test_addresses() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "[::1]", "localhost", "127.9.9.9")] == [True] * 5
    assert [is_loopback(h) for h in ("0.0.0.0", "::", "10.0.0.1", "example.org", "")] == [False] * 5
    assert split_address("0.0.0.0:81") == ("0.0.0.0", 81)
    assert split_address("[::1]:81") == ("[::1]", 81)
    assert split_address("[::1]") == ("[::1]", None)
    assert split_address(":81") == ("127.0.0.1", 81)
    assert split_address("box") == ("box", None)
    with pytest.raises(BadSettings):
        split_address("box:http")


def test_a_key_reaches_the_server_by_the_address_of_a_browser(small_path: Path) -> None:
    key = "a&b#c+d%41 é"
    with running(small_path, ServeSettings(api_keys=[key])) as server:
        assert server.get(url_with_key("/", [key, "other"])).status == 303
    assert url_with_key("http://h/", []) == "http://h/"


def test_keys_of_flags_and_files(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("three\n\n four \n")
    settings = ServeSettings(api_keys=["one,two", "one"], api_key_file=str(tmp_path / "keys"))
    assert read_keys(settings) == ["one", "two", "three", "four"]
    assert len({make_key() for _ in range(100)}) == 100


def test_the_next_free_port_is_taken_only_where_none_was_asked_for() -> None:
    with bind("127.0.0.1", None) as first, bind("127.0.0.1", None) as second:
        ports = [s.getsockname()[1] for s in (first, second)]
        assert ports[0] < ports[1]
        assert url_of(second, ServeSettings()) == f"http://127.0.0.1:{ports[1]}/"
        with pytest.raises(BadSettings, match=str(ports[0])):
            bind("127.0.0.1", ports[0])
    with bind("0.0.0.0", 0) as everywhere:
        assert url_of(everywhere, ServeSettings()).startswith("http://127.0.0.1:")
    with pytest.raises(BadSettings):
        bind("256.1.1.1", 0)
