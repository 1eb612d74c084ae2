"""What stands between a visitor and Gradio's server."""

import logging
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from demo.visitors import Guesses, Places, visitor

MAX_BODY = 1_000_000
"""Bytes of a request."""
BEFORE_LOGIN = re.compile(
    r"/|/(login|config|theme\.css|favicon\.ico|robots\.txt)/?|/(assets|static)/.+|/gradio_api/login_check/?"
)
BEHIND_LOGIN = re.compile(
    r"/logout/?"
    r"|/gradio_api/(info|user|app_id|queue/join|queue/data|cancel|reset|heartbeat/\w+|run/\w+|call/(v2/)?\w+(/\w+)?)/?"
)
"""All that the page and the client of Gradio ask for. What is in neither of the two is not there."""
JOINS = re.compile(r"/gradio_api/(queue/join|call/(v2/)?\w+)/?")
LISTENS = re.compile(r"/gradio_api/(?:queue/data|call/(?:v2/)?\w+/(\w+))/?")
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""Gradio's scripts stand in the page, and evaluate; nothing is loaded from elsewhere, nor sent there."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}

log = logging.getLogger(__name__)


class RequestFilter:
    """Lets through what the page needs, if it is small and comes from the page itself; Gradio sees nothing else.

    Args:
        app: What is behind it.
        gradio: The page's own app, whose logins count.
        places: The requests of each visitor in the queue.
        prefix: Under which a proxy shows the page.
        hosts: Names and addresses under which the page may be asked for, or *. More may be added.
    """

    def __init__(self, app: ASGIApp, gradio: Any, places: Places, prefix: str, hosts: set[str]) -> None:
        self._app, self._gradio, self._places = app, gradio, places
        self._prefix, self.hosts = prefix.rstrip("/"), hosts
        self._guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. What fails on the way is one line in the log: strangers send any nonsense."""
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        begun, going_on = False, True

        async def sealed(message: Message) -> None:
            nonlocal begun, going_on
            if message["type"] == "http.response.start":
                begun = True
                MutableHeaders(raw=message["headers"]).update(HEADERS)
            else:
                going_on = message.get("more_body", False)
            await send(message)

        try:
            answer = self._refusal(scope) or await self._pass(scope, receive, sealed)
        except Exception as error:
            log.warning("%s %.99r: %s: %.99r", scope["method"], scope["path"], type(error).__name__, str(error))
            answer = None if begun else PlainTextResponse("this request cannot be read", 400)
            if begun and going_on:
                await send({"type": "http.response.body", "body": b""})
        if answer is not None:
            await answer(scope, receive, sealed)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), self._path(scope)
        if scope["method"] not in ("GET", "HEAD", "POST") or not (
            BEFORE_LOGIN.fullmatch(path) or BEHIND_LOGIN.fullmatch(path)
        ):
            return PlainTextResponse("there is nothing here", 404)
        host = headers.get("host", "")
        for name in [host, *headers.getlist("x-forwarded-host")]:
            if not self._is_ours(name, scope):
                text = f"the page is not known as {name[:100]!r}: start it with --allowed_hosts to let it be"
                return PlainTextResponse(text, 421)
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, host):
            return PlainTextResponse("this came from another page", 403)
        if not BEFORE_LOGIN.fullmatch(path) and not self._is_known(headers):
            return JSONResponse({"detail": {"error": "Not authenticated", "auth_message": None}}, 401)
        return None

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> Response | None:
        """Let it through, or say why not, which only now can be seen."""
        path, who = self._path(scope), visitor(scope)
        body = await _whole(receive)
        if body is None:
            return PlainTextResponse(f"a request may have {MAX_BODY:,} bytes", 413)
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"x-gradio-server"]
        again = _replay(body, receive)
        if scope["method"] == "GET" and (stream := LISTENS.fullmatch(path)):
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])
            with self._places.listening(stream[1] or asked[0]):
                await self._app(scope, again, send)
        elif scope["method"] == "POST" and JOINS.fullmatch(path):
            if self._places.taken(who) >= self._places.max_places:
                return JSONResponse({"detail": f"{self._places.max_places} requests of yours are waiting already"}, 503)
            with self._places.joining():
                await self._app(scope, again, send)
        elif scope["method"] == "POST" and path.strip("/") == "login":
            return await self._log_in(who, scope, again, send)
        else:
            await self._app(scope, again, send)
        return None

    async def _log_in(self, who: str, scope: Scope, receive: Receive, send: Send) -> Response | None:
        if seconds := self._guesses.wait(who):
            text = f"too many wrong passwords: wait {seconds:.0f} seconds"
            return JSONResponse({"detail": text}, 429, {"Retry-After": f"{seconds:.0f}"})

        async def seen(message: Message) -> None:
            if message.get("status") == 200:
                self._guesses.right(who)
            await send(message)

        await self._app(scope, receive, seen)
        return None

    def _path(self, scope: Scope) -> str:
        path = str(scope["path"])
        return (path[len(self._prefix) :] or "/") if f"{path}/".startswith(f"{self._prefix}/") else path

    def _is_ours(self, host: str, scope: Scope) -> bool:
        """Whether a Host header names this page, or the address at which the connection has arrived."""
        name = _name(f"//{host}")
        return bool(name) and ("*" in self.hosts or name in self.hosts or name == (scope.get("server") or [""])[0])

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a request comes from this page: as it was asked for, or as a proxy in front of it shows it."""
        return urlsplit(origin).netloc == host or _name(origin) in self.hosts - LOOPBACK

    def _is_known(self, headers: Headers) -> bool:
        app, cookies = self._gradio, cookie_parser(headers.get("cookie", ""))
        names = f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}"
        return app.auth is None or any(cookies.get(name) in app.tokens for name in names)


LOOPBACK = {"localhost", "127.0.0.1", "::1"}


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


async def _whole(receive: Receive) -> bytes | None:
    """A request's body, or None once it is too long."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            return None
        more = message.get("more_body", False)
    return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


class FewerFrames:
    """Puts `frames.js` into the page before all scripts of Gradio. Gradio's own option runs scripts too late."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        script = Path(__file__).with_name("frames.js").read_bytes()
        self._head = b"<head><script>\n" + script + b"</script>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def changed(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(raw=message["headers"])["content-length"]
            elif message["type"] == "http.response.body":
                message["body"] = message["body"].replace(b"<head>", self._head, 1)
            await send(message)

        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        is_page = scope["type"] == "http" and path in ("", "/")
        await self._app(scope, receive, changed if is_page else send)
