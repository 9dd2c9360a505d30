"""The pictures of the papers' data sets, fetched for who calls a command."""

import sys
from pathlib import Path

import typer

from imletriton.console import console, errors, progress_bar
from imletriton.data import catalogue
from imletriton.data.catalogue import DATASETS, KnownSet
from imletriton.data.files import holds_images, list_images
from imletriton.errors import InputError


def fetch_missing(source: str, yes: bool) -> None:
    """Fetch a recipe's pictures where they are missing and have an address; ask first where someone can answer.

    source: its data.source. yes: do not ask. Raises InputError where the answer is no, or they cannot be had.
    """
    known = catalogue.at(source)
    if known is None or known.archive is None or holds_images(Path(source)):
        return
    from imletriton.data.fetching import download_size, is_downloaded

    if not is_downloaded(known):
        console.print(f"The pictures of {known.name} are not in {source} yet. They can be fetched:")
        console.print(f"  from     {known.url}")
        console.print(f"  licence  {known.licence}")
        size = download_size(known)
        console.print(f"  size     {f'{size / 1e6:,.1f} MB' if size else 'unknown, as the server does not tell it'}")
        if yes or not _someone_answers():
            console.print("Fetching them now.")
        elif not typer.confirm("Fetch them now?", default=True):
            raise InputError(
                f"Without pictures nothing is trained: `imletriton data get {known.name}` fetches these later, "
                "or name a folder of your own with `data.source=FOLDER`."
            )
    fetch(known)


def fetch(known: KnownSet) -> bool:
    """Fetch a data set into its folder, under a progress bar; whether that was needed. Raises InputError as `get` does.

    Interrupted by Ctrl-C, it tells what is kept.
    """
    from rich.progress import DownloadColumn

    from imletriton.data.fetching import get

    there = holds_images(DATASETS / known.folder)
    with progress_bar(count=DownloadColumn()) as bar:
        task = bar.add_task("fetching", visible=False, figures="")

        def progress(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        try:
            folder = get(known.name, progress=progress)
        except KeyboardInterrupt:
            bar.stop()
            kept = DATASETS / ".archives"
            errors.print(f"\nStopped: what has arrived is kept in {kept}, and the same command goes on from there.")
            raise
    count = len(list_images(folder))
    told = "" if known.about or count == known.images else f" (the papers have {known.images})"
    console.print(f"{folder} holds {count} images{told}" + (" already: nothing fetched." if there else "."))
    return not there


def _someone_answers() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
