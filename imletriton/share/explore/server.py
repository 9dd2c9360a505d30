"""The server of the page of `imletriton explore`, and what it refuses."""

import contextlib
import errno
import json
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imletriton.errors import InputError
from imletriton.share.explore.explorer import Explorer
from imletriton.share.explore.page import Page
from imletriton.system.stopping import SAVING

PORTS = range(7860, 7960)
MAX_UPLOAD = "20mb"
FONTS = ["system-ui", "sans-serif"]  # of the visitor's own machine
# Scripts, styles and pictures come from the page's own server, and the page asks no other one.
POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data: blob:"
# Routes of Gradio that fetch addresses of the web, or start other programs; the page uses none of them.
REFUSED = re.compile(r"/gradio_api/(file=\w+:|proxy=|process_recording|stream|vibe)", re.IGNORECASE)
MAX_BODY = 2**20  # bytes of an event; uploads have a limit of their own


def make_app(page: Page) -> fastapi.FastAPI:
    """Wrap the page in a web application that needs no network, and that answers nothing else."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, folder=page.work)
    mounted: fastapi.FastAPI = gr.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=MAX_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Soft(
            primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=["ui-monospace", "monospace"]
        ).set(block_title_background_fill="none", block_title_padding="0", block_title_text_color="*body_text_color"),
        css=Path(__file__).with_name("explore.css").read_text("utf-8"),
    )
    return mounted


def serve(
    explorer: Explorer, host: str, port: int | None, favourites: Path | None, ready: Callable[[str], object]
) -> None:
    """Show the page until the process is ended.

    Args:
        explorer: The model.
        host: The address to listen on.
        port: The port; None for the first free one from 7860 on.
        favourites: See `Page`.
        ready: Called with the page's address once it can be opened.

    Raises:
        InputError: The address or the port cannot be listened on.
    """
    listener = listen(host, port)
    with tempfile.TemporaryDirectory(prefix="imletriton-explore-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        app = make_app(Page(explorer, Path(folder), favourites))
        # An open page is an open connection, whose end uvicorn would tell as an error.
        config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{listener.getsockname()[1]}")
        Server(config).run(sockets=[listener])


class Server(uvicorn.Server):
    """A server that ends with its work done, on one of the signals SAVING, where uvicorn would raise it again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SAVING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int | None) -> socket.socket:
    """Listen on a port; None for the first free one of PORTS.

    Raises:
        InputError: The address or the port cannot be listened on.
    """
    ports = PORTS if port is None else [port]
    for number in ports:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError) as error:
            raise InputError(f"`host` {host!r} is no address of this machine: use 127.0.0.1.") from error
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen()
            return listener
        except OSError as error:
            listener.close()
            reason = str(error.strerror)
            if error.errno == errno.EADDRNOTAVAIL:
                raise InputError(f"`host` {host!r} is no address of this machine: use 127.0.0.1.") from error
    raise InputError(f"Port {ports[0]} of {host} cannot be listened on ({reason}): choose another `port`.")


class Guard:
    """Refuses what the page does not need: files of this machine, addresses to fetch, events of great size.

    Args:
        app: The application that answers the rest.
        folder: The folder of the files that the page has made or was given.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self.app, self.folder = app, folder.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if REFUSED.match(scope["path"]):
            await PlainTextResponse("refused", 403)(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        if scope["method"] != "POST" or scope["path"] == "/gradio_api/upload":
            await self.app(scope, receive, send_with_policy)
            return
        body, more = b"", True
        while more and len(body) <= MAX_BODY:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        files = files_named(body) if not more and len(body) <= MAX_BODY else None
        # Gradio checks this too, but not where it is mounted in another application.
        if files is None or not all(file.is_relative_to(self.folder) for file in files):
            await PlainTextResponse("refused", 403)(scope, receive, send)
            return
        waiting: list[Message] = [{"type": "http.request", "body": body}]

        async def receive_again() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, receive_again, send_with_policy)


def files_named(body: bytes) -> list[Path] | None:
    """The files that an event names, where an address of the web counts as one; None where it is no JSON."""
    files, stack = list[Path](), list[Any]()
    try:
        stack.append(json.loads(body or b"null"))
        while stack:
            value = stack.pop()
            if isinstance(value, dict):
                if "path" in value and value["path"] is not None:
                    files.append(Path(value["path"]).resolve())
                stack += value.values()
            elif isinstance(value, list):
                stack += value
    except (ValueError, TypeError, OSError, RecursionError):
        return None
    return files
