"""The server of the page of `imletriton explore`, and the requests that it refuses."""

import errno
import json
import os
import re
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

import fastapi
import gradio as gr
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from imletriton.errors import InputError
from imletriton.share.explore.explorer import Explorer
from imletriton.share.explore.page import Page

PORTS = range(7860, 7960)
MAX_UPLOAD = "20mb"
MAX_BODY = 2**20  # bytes of an event
FONTS = ["system-ui", "sans-serif"]  # of the visitor's own machine
# The page loads scripts, styles and pictures from its own server alone.
POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data: blob:"
# Gradio's routes that fetch web addresses or start other programs, which the page does not use.
REFUSED = re.compile(r"/gradio_api/(file=\w+:|proxy=|process_recording|stream|vibe)", re.IGNORECASE)


def serve(
    explorer: Explorer, host: str, port: int | None, favourites: Path | None, ready: Callable[[str], object]
) -> None:
    """Show the page until this process is interrupted; see `explore`.

    Raises:
        InputError: The address or the port cannot be listened on.
    """
    listener = listen(host, port)
    with tempfile.TemporaryDirectory(prefix="imletriton-explore-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        app = make_app(Page(explorer, Path(folder), favourites))
        # An open page is an open connection, which uvicorn would report as an error when it closes.
        config = uvicorn.Config(app, log_level="critical", access_log=False, timeout_graceful_shutdown=1)
        name = f"[{host}]" if ":" in host else host
        ready(f"http://{name}:{listener.getsockname()[1]}")
        Server(config).run(sockets=[listener])


class Server(uvicorn.Server):
    """A server that stops on Ctrl-C and SIGTERM, which uvicorn's own would raise again afterwards."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit  # a second signal does not wait for requests
        self.should_exit = True


def listen(host: str, port: int | None) -> socket.socket:
    """Listen on a port; None for the first free one of PORTS.

    Raises:
        InputError: The address or the port cannot be listened on.
    """
    ports = PORTS if port is None else [port]
    for number in ports:
        try:
            return socket.create_server((host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except (OSError, UnicodeError) as error:
            if not isinstance(error, OSError) or error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise InputError(f"`host` {host!r} is not an address of this machine: use 127.0.0.1.") from error
            reason = os.strerror(error.errno)
    raise InputError(f"Port {ports[0]} of {host} cannot be listened on ({reason}): choose another `port`.")


def make_app(page: Page) -> fastapi.FastAPI:
    """Wrap the page in a web application that needs no network and serves nothing else."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = await _refused(request, page.work.resolve())
        response = PlainTextResponse("refused", 403) if refused else await go_on(request)
        response.headers["content-security-policy"] = POLICY
        return response

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


async def _refused(request: Request, folder: Path) -> bool:
    """Whether a request is not the page's: it names files outside the page's folder or web addresses, or is large."""
    path = request.scope["path"]  # which, unlike request.url, does not depend on the request's headers
    if request.method != "POST" or path == "/gradio_api/upload":
        return REFUSED.match(path) is not None
    length = request.headers.get("content-length", "")
    if REFUSED.match(path) or not length.isdecimal() or int(length) > MAX_BODY:
        return True
    # Gradio checks this too, but not where it is mounted in another application.
    files = _files_named(await request.body())
    return files is None or not all(file.is_relative_to(folder) for file in files)


def _files_named(body: bytes) -> list[Path] | None:
    """The files that an event names, web addresses among them; None where it is not JSON."""
    files = list[Path]()

    def look(value: dict[str, Any]) -> None:
        if value.get("path") is not None:
            files.append(Path(value["path"]).resolve())

    try:
        json.loads(body or b"null", object_hook=look)
    except (ValueError, TypeError, OSError, RecursionError):
        return None
    return files
