"""What a server of Gradio offers besides the page, and this one does not: files, in and out."""

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

CLOSED = ("file", "proxy=", "upload", "deep_link", "stream", "custom_component", "process_recording", "vibe-")
"""How a part of such an address begins."""


class ClosedRoutes:
    """Refuses them before they are looked at."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        first = scope.get("path", "").removeprefix("/gradio_api").lstrip("/")
        if scope["type"] == "http" and first.startswith(CLOSED):
            await PlainTextResponse("there is nothing here", 404)(scope, receive, send)
        else:
            await self._app(scope, receive, send)
