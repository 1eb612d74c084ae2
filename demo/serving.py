"""From a page to a server: Gradio's app behind our own filter, on a socket of our own."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from gradio_client.utils import is_file_obj_with_meta, traverse
from starlette.middleware import Middleware

from demo.middleware import LOOPBACK, FewerFrames, RequestFilter
from demo.visitors import Places
from training.runtime.errors import InputError

POLL_SECONDS = 0.05
ANYWHERE = {"0.0.0.0", "::"}

log = logging.getLogger(__name__)


class Page(gr.Blocks):
    """Gradio's page. What strangers send that no widget of ours would is refused in one line of the log."""

    async def process_api(self, block_fn: Any, inputs: list[Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        """Run an event."""
        try:
            traverse(inputs, _refuse_file, is_file_obj_with_meta)  # Gradio would fetch it, and only then look at it.
            return await super().process_api(block_fn, inputs, *arguments, **options)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace is not None else ""
            log.warning("an event failed: %s at %s: %.200r", type(error).__name__, where, str(error))
            raise gr.Error("this request cannot be answered", print_exception=False) from error


def _refuse_file(_: Any) -> None:
    raise gr.Error("this page takes no files", print_exception=False)


class Served(NamedTuple):
    """A page that is being served: the addresses at which it can be opened, and the thread that does it."""

    urls: list[str]
    thread: threading.Thread


def listen(host: str, port: int) -> socket.socket:
    """A socket for visitors.

    Raises:
        InputError: The address cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((address[0], port), family=family)
    except OSError as error:
        # An unknown name has a number of its own.
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise InputError(f"cannot listen at {host}:{port}: {reason}") from error


@contextmanager
def serve(
    page: gr.Blocks,
    listener: socket.socket,
    *,
    host: str,
    auth: tuple[str, str] | None = None,
    share: bool = False,
    allowed_hosts: Collection[str] = (),
    trusted_proxies: Sequence[str] = (),
    concurrency: int = 1,
    waiting: int = 16,
    places: int = 8,
) -> Iterator[Served]:
    """Serve a page in a thread, until this ends.

    Args:
        page: What to serve: no analytics, no monitoring, no history, no files, nothing from elsewhere.
        listener: Where visitors come in.
        host: The name or address that it was made for.
        auth: Name and password that visitors must give.
        share: Whether to make a public address, through a tunnel of Gradio's.
        allowed_hosts: Names under which the page may be asked for, besides this machine's; * for any.
        trusted_proxies: Addresses or networks of proxies whose X-Forwarded-For is believed.
        concurrency: Requests that run a model at once.
        waiting, places: Requests that may wait; and those of one visitor, waiting and running.

    Raises:
        InputError: No public address can be had.
    """
    page.queue(max_size=waiting, default_concurrency_limit=concurrency, api_open=False)  # No way past the queue.
    port = listener.getsockname()[1]
    app, gradio = _mounted(page, host, port, auth)
    hosts = {name.lower() for name in (*allowed_hosts, *LOOPBACK, socket.gethostname(), host)} - ANYWHERE
    config = uvicorn.Config(
        RequestFilter(app, gradio, Places(page._queue, places), gradio.root_path, hosts),
        log_level="warning",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=1,
        proxy_headers=bool(trusted_proxies) or share,
        forwarded_allow_ips=[*trusted_proxies, *(["127.0.0.1"] if share else [])],  # The tunnel's end is here.
    )
    with _running(uvicorn.Server(config), listener, gradio.stop_event) as thread:
        name = "localhost" if host in ANYWHERE else host
        urls = [f"http://[{name}]:{port}/" if ":" in name else f"http://{name}:{port}/"]
        if share:
            urls.append(_tunnel("127.0.0.1" if host in ANYWHERE else host, port))
            hosts.add(str(urlsplit(urls[-1]).hostname))
        yield Served(urls, thread)


@contextmanager
def _running(server: uvicorn.Server, listener: socket.socket, stopping: Any) -> Iterator[threading.Thread]:
    """The thread of a server that has started; at the end, `stopping` is set for the events that still run."""
    thread = threading.Thread(target=server.run, args=([listener],), name="server", daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield thread
    finally:
        stopping.set()
        server.should_exit = True
        thread.join(5)
        listener.close()


def _mounted(page: gr.Blocks, host: str, port: int, auth: tuple[str, str] | None) -> tuple[FastAPI, Any]:
    """An app with the page in it, and Gradio's own app."""
    page.state_session_capacity, page.has_launched = 100, True
    # Else it looks a thousand times a second for new requests, on the cores of the decoder.
    page._queue.sleep_when_free = page._queue.progress_update_sleep_when_free = POLL_SECONDS
    app = FastAPI(openapi_url=None)
    gr.mount_gradio_app(
        app,
        page,
        "/",
        host,
        port,
        auth=auth,
        show_error=False,
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        footer_links=[],
        max_file_size=1,
        app_kwargs={"middleware": [Middleware(FewerFrames)]},
        theme=_theme(),
        css_paths=Path(__file__).with_name("style.css"),
    )
    return app, app.routes[-1].app  # type: ignore[attr-defined]


def _theme() -> gr.themes.Base:
    """Fonts of the visitor's own machine: nothing is fetched from elsewhere. Colours that can be read on each other."""
    default = gr.themes.Default(
        primary_hue="blue",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    )
    return default.set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_700",
        color_accent="*primary_600",
        body_text_color_subdued="*neutral_500",
    )


def _tunnel(host: str, port: int) -> str:
    from gradio.networking import setup_tunnel

    try:
        address = setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
    except Exception as error:
        raise InputError(f"no public link can be made: {error}; leave --share away, or try again later") from error
    return f"https://{urlsplit(address).netloc}/"
