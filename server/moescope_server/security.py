"""Who may talk to this server: Host, Origin and token are checked, bodies are counted, answers carry strict headers."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moescope_server.settings import Settings
from moescope_server.wire import JSON

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "form-action 'self'",
    )
)

HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

UPLOAD_PATH = "/api/checkpoints/upload"

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_NEED_TOKEN = "Open the address that the server printed at its start: it holds the token this page needs."
_WRONG_TOKEN = "This address's token is not the one that the server printed at its latest start; open that address."


class Gate:
    """The outermost layer of the app. Every refusal is one sentence, as JSON below /api and as plain text elsewhere."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        api = _is_api(scope["path"])

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store" if api else "no-cache")
            await send(message)

        early = self._answer(scope, Headers(scope=scope), api)
        if early is not None:
            await early(scope, receive, send_with_headers)
            return
        limit = self.settings.max_upload if scope["path"] == UPLOAD_PATH else self.settings.max_json
        await self.app(scope, _Counted(receive, limit), send_with_headers)

    def _answer(self, scope: Scope, headers: Headers, api: bool) -> Response | None:
        """The refusal or redirect that ends this request, or None where it may go on."""
        host = headers.get("host", "")
        if not self._host_allowed(host):
            return _refuse(api, 400, "The Host header names an address that this server was not started for.")
        if scope["method"] not in _SAFE_METHODS and not _same_origin(headers, host):
            return _refuse(api, 403, "Requests that change something must come from this server's own page.")
        if api and headers.get("sec-fetch-site") == "cross-site":
            return _refuse(api, 403, "Another site's page may not read this server's data.")
        if not api:
            return self._sign_in(scope, host)
        if not self._has_token(headers, host):
            return _refuse(api, 401, _NEED_TOKEN)
        declared = headers.get("content-length", "0")
        limit = self.settings.max_upload if scope["path"] == UPLOAD_PATH else self.settings.max_json
        if not declared.isdigit() or int(declared) > limit:
            return _refuse(api, 413, too_large(limit))
        return None

    def _host_allowed(self, host: str) -> bool:
        name = host_name(host)
        if name in self.settings.hosts:
            return True
        return "*" in self.settings.hosts and _is_ip(name)

    def _sign_in(self, scope: Scope, host: str) -> Response | None:
        """`?token=...` becomes a cookie, and the address loses it."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if not given:
            return None
        if scope["method"] != "GET" or not _equal(given[0], self.settings.token):
            return _refuse(False, 401, _WRONG_TOKEN)
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        path = "/" + scope["path"].lstrip("/\\")  # never "//elsewhere"
        answer = RedirectResponse(path + (f"?{rest}" if rest else ""), status_code=303)
        answer.set_cookie(cookie_name(host), self.settings.token, httponly=True, samesite="strict", path="/")
        answer.headers["cache-control"] = "no-store"
        return answer

    def _has_token(self, headers: Headers, host: str) -> bool:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return _equal(bearer.strip(), self.settings.token)
        wanted = cookie_name(host)
        pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
        return any(name == wanted and _equal(value, self.settings.token) for name, _, value in pairs)


class _Counted:
    """A request's body, refused once it is larger than `limit`, whatever its headers said."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.receive, self.limit, self.seen = receive, limit, 0

    async def __call__(self) -> Message:
        message = await self.receive()
        self.seen += len(message.get("body", b""))
        if self.seen > self.limit:
            raise BodyTooLargeError(self.limit)
        return message


class BodyTooLargeError(HTTPException):
    """A request's body went on past its limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, too_large(limit))


def too_large(limit: int) -> str:
    return f"The request is larger than this server accepts here ({limit:,} bytes)."


def cookie_name(host: str) -> str:
    """Cookies are shared by all ports of a host, so each port has its own."""
    _, _, port = host.removeprefix("[").rpartition("]")[2].rpartition(":")
    return f"moescope-{port}" if port.isdigit() else "moescope"


def host_name(host: str) -> str:
    """The Host header without its port, in lower case; an IPv6 address keeps its brackets."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _is_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _same_origin(headers: Headers, host: str) -> bool:
    """No Origin is a script with a token; browsers always send one with requests that change something."""
    origin = headers.get("origin")
    return origin is None or origin in (f"http://{host}", f"https://{host}")


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _refuse(api: bool, status: int, sentence: str) -> Response:
    return JSON({"detail": sentence}, status) if api else PlainTextResponse(sentence + "\n", status)
