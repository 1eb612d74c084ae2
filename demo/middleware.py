"""What stands between a visitor and Gradio's server."""

from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CLOSED = ("file", "proxy=", "upload", "deep_link", "stream", "custom_component", "process_recording", "vibe-")
"""How a part of such an address begins."""


class ClosedRoutes:
    """Refuses what a server of Gradio offers besides the page, and this one does not: files, in and out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        first = scope.get("path", "").removeprefix("/gradio_api").lstrip("/")
        if scope["type"] == "http" and first.startswith(CLOSED):
            await PlainTextResponse("there is nothing here", 404)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class FewerFrames:
    """Puts `frames.js` into the page before all scripts of Gradio, whose own option for scripts runs them too late."""

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

        is_page = scope["type"] == "http" and scope["path"] == "/"
        await self._app(scope, receive, changed if is_page else send)
