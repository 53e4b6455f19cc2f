"""Who may talk to the server, and what every answer says to the browser."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.testclient import TestClient

from moescope_server.security import cookie_name, host_name
from moescope_server.serve import allowed_hosts
from moescope_server.settings import Settings


def api_routes(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path) of every route below /api, with something in place of each parameter."""
    found = [
        (method, re.sub(r"\{[^}]*\}", "1", str(route.path)))
        for route in iter_route_contexts(app.routes)
        for method in sorted(route.methods or ())
        if str(route.path).startswith("/api")
    ]
    assert len(found) > 25
    return found


def test_every_route_below_api_needs_the_token(app: FastAPI, stranger: TestClient) -> None:
    for method, path in api_routes(app):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": "moescope-7400=wrong"}):
            answer = stranger.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path)
            assert "Open the address" in answer.json()["detail"]


def test_the_token_is_taken_from_bearer_or_cookie_and_nothing_else(stranger: TestClient, settings: Settings) -> None:
    token = settings.token
    for headers in ({"authorization": f"Bearer {token}"}, {"cookie": f"a=b; moescope-7400={token}"}):
        assert stranger.get("/api/info", headers=headers).status_code == 200
    for headers in (
        {"authorization": f"Basic {token}"},
        {"authorization": token},
        {"cookie": f"moescope-7401={token}"},
        {"cookie": f"moescope-7400={token}x"},
        {"cookie": "moescope-7400="},
        {"authorization": "Bearer "},
        {"x-token": token},
    ):
        assert stranger.get("/api/info", headers=headers).status_code == 401, headers
    assert stranger.get(f"/api/info?token={token}").status_code == 401


def test_the_printed_address_becomes_a_cookie_and_loses_its_token(stranger: TestClient, settings: Settings) -> None:
    answer = stranger.get(f"/?a=1&token={settings.token}&b=%C3%A9")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/?a=1&b=%C3%A9"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"moescope-7400={settings.token};")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert stranger.get("/api/info").status_code == 200  # the client keeps the cookie


def test_a_wrong_token_in_the_address_is_refused_and_sets_nothing(stranger: TestClient) -> None:
    for address in ("/?token=wrong", "/?token=", "/?token=%00"):
        answer = stranger.get(address)
        assert answer.status_code == 401 and "set-cookie" not in answer.headers
        assert "token" in answer.text


def test_signing_in_never_redirects_to_another_host(stranger: TestClient, settings: Settings) -> None:
    answer = stranger.get(f"http://localhost:7400//evil.example/?token={settings.token}")
    assert answer.headers["location"] == "/evil.example/"


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "192.168.0.7:7400", "[::2]:7400"]
)
def test_another_host_name_is_refused_whatever_the_path(client: TestClient, host: str) -> None:
    for path in ("/", "/api/info", "/vendor/plotly.min.js"):
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 400 and "Host" in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:7400", "[::1]:7400", "[::1]"])
def test_names_of_this_machine_are_accepted_with_any_port(client: TestClient, host: str) -> None:
    assert client.get("/api/info", headers={"host": host}).status_code == 200


def test_only_ip_addresses_and_the_machines_own_name_are_added_for_a_wildcard() -> None:
    hosts = allowed_hosts("0.0.0.0")
    assert "*" in hosts and "localhost" in hosts and "evil.example" not in hosts
    assert "*" not in allowed_hosts("127.0.0.1") and "192.168.0.7" in allowed_hosts("192.168.0.7")
    assert "[fe80::1]" in allowed_hosts("fe80::1")


def test_a_wildcard_allows_addresses_but_no_foreign_names(store, settings: Settings) -> None:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    from moescope_server.app import create_app

    app = create_app(store, replace(settings, hosts=allowed_hosts("0.0.0.0")))
    with TestClient(app, headers={"authorization": f"Bearer {settings.token}"}) as client:
        for host, status in (("192.168.0.7:7400", 200), ("[fe80::1]:7400", 200), ("evil.example", 400)):
            assert client.get("/api/info", headers={"host": host}).status_code == status


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:7401", "https://localhost", ""])
def test_changes_from_another_origin_are_refused(client: TestClient, origin: str) -> None:
    for method, path in (("POST", "/api/runs"), ("DELETE", "/api/traces/x"), ("POST", "/api/checkpoints/upload")):
        answer = client.request(method, path, headers={"origin": origin})
        assert answer.status_code == 403, (method, path)
        assert "own page" in answer.json()["detail"]


def test_changes_from_the_page_itself_and_from_scripts_are_accepted(client: TestClient) -> None:
    for headers in ({"origin": "http://localhost:7400"}, {}):
        assert client.delete("/api/traces/x", headers=headers).status_code == 404


def test_another_sites_page_cannot_even_read(client: TestClient) -> None:
    assert client.get("/api/info", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.get("/api/info", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_every_answer_carries_the_strict_headers(client: TestClient, stranger: TestClient) -> None:
    answers = [
        client.get("/"),
        client.get("/api/info"),
        client.get("/api/nope"),
        client.get("/no-such-file.js"),
        client.get("/vendor/plotly.min.js"),
        client.post("/api/runs", content=b"no json"),
        client.get("/api/info", headers={"host": "evil.example"}),
        stranger.get("/api/info"),
        stranger.get("/?token=wrong"),
    ]
    for answer in answers:
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["script-src"] == "'self'", answer.url
        assert policy["frame-ancestors"] == policy["object-src"] == policy["base-uri"] == "'none'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in answer.headers
        assert "set-cookie" not in answer.headers
    assert client.get("/api/info").headers["cache-control"] == "no-store"


def test_a_failure_of_the_server_is_json_with_the_strict_headers(
    app: FastAPI, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret\nsecond line")

    monkeypatch.setattr("moescope.store.store.Store.runs", broken)
    headers = {"authorization": f"Bearer {settings.token}"}
    with TestClient(app, base_url="http://localhost", headers=headers, raise_server_exceptions=False) as client:
        answer = client.get("/api/runs")
    assert answer.status_code == 500 and "\n" not in answer.json()["detail"]
    assert "content-security-policy" in answer.headers


def test_a_body_larger_than_the_limit_is_refused_declared_or_not(client: TestClient, settings: Settings) -> None:
    big = b'{"path": "' + b"x" * settings.max_json + b'"}'
    declared = client.post("/api/checkpoints/open", content=big)
    counted = client.post("/api/checkpoints/open", content=(big[i : i + 65536] for i in range(0, len(big), 65536)))
    for answer in (declared, counted):
        assert answer.status_code == 413
        assert "larger than this server accepts" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/../pyproject.toml", "/%2e%2e/pyproject.toml"])
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_names_and_cookies_are_told_from_the_host_header() -> None:
    for host, name, cookie in (
        ("localhost:7400", "localhost", "moescope-7400"),
        ("[::1]:7400", "[::1]", "moescope-7400"),
        ("[::1]", "[::1]", "moescope"),
        ("LOCALHOST", "localhost", "moescope"),
    ):
        assert (host_name(host), cookie_name(host)) == (name, cookie)
