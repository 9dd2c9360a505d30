"""A page to play with a model in a browser: `imletriton explore`."""

import os
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING

from imletriton.runs.opening import Source, open_source
from imletriton.system.checks import check_device, check_extra, check_range

if TYPE_CHECKING:  # wrong input is reported before PyTorch and Gradio are imported
    import torch


def explore(
    source: str | PathLike[str] | Source | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    device: "str | torch.device | None" = None,
    keep: bool = True,
    ready: Callable[[str], object] = print,
    note: Callable[[str], object] = lambda text: None,
) -> None:
    """Show a page to play with a model in a browser, until this process is interrupted.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        host: The address to listen on; by default, only this machine can open the page.
        port: The port; None for the first free one from 7860 on.
        device: cuda or cpu; None takes cuda where there is a CUDA GPU.
        keep: Whether the page saves favourites in RUN/favourites; else they can only be downloaded.
        ready: Called with the page's address once it can be opened.
        note: Called with a sentence before PyTorch and Gradio are imported, which takes seconds.

    Raises:
        InputError: Gradio is not installed, the source cannot be used or generates points, the device is unknown, or
            the address cannot be listened on.
    """
    check_extra("gradio", "explore")
    if port is not None:
        check_range("port", port, 0, 65535)
    check_device(device)
    opened = open_source(source)
    note(f"Opening {opened.title}: loading PyTorch and Gradio.")

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported, which would ask its makers' server
    from imletriton.share.explore.explorer import Explorer
    from imletriton.share.explore.server import serve

    serve(Explorer(opened, device), host, port, opened.run.favourites if keep else None, ready)
