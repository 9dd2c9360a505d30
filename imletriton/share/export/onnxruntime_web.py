"""The files of onnxruntime-web, which runs a model in a browser: from the user's cache, from npm or from a folder."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from imletriton.data import cache
from imletriton.errors import InputError
from imletriton.runs.run import write_whole

PACKAGE = "onnxruntime-web@1.30.0"
MODULE, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
SHA256 = {  # of the files that a page needs, in the package's folder dist/
    MODULE: "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
SECONDS = 900  # that npm may take for the package's 25 MB
MEND = f"unpack the npm package {PACKAGE} where it can be had, and name its folder with `onnxruntime=DIR`"


def runtime_files(folder: Path | None = None) -> dict[str, bytes]:
    """Return the files of onnxruntime-web that a page needs.

    Without a folder they come from the user's cache; where they are not in it, `npm pack` fetches them once.

    Args:
        folder: The folder of a package onnxruntime-web that has been unpacked, of any version.

    Returns:
        MODULE and WASM, each with its content.

    Raises:
        InputError: The folder does not hold them, or npm is missing or cannot fetch them.
    """
    if folder:
        inside = next((place for place in (folder / "dist", folder) if (place / MODULE).is_file()), folder)
        try:
            return {name: (inside / name).read_bytes() for name in SHA256}
        except OSError as error:
            raise InputError(
                f"{error.filename} cannot be read ({error.strerror}): name the folder of the unpacked npm package "
                f"{PACKAGE} with `onnxruntime=DIR`."
            ) from error
    kept = cached()
    if kept is None:
        try:
            kept = _fetched()
        except OSError as error:
            raise InputError(f"{PACKAGE} could not be fetched ({error.strerror}): {MEND}.") from error
        with contextlib.suppress(OSError):  # then they are fetched again the next time
            place = _place()
            place.mkdir(parents=True, exist_ok=True)
            for name, content in kept.items():
                write_whole(place / name, lambda file, content=content: file.write_bytes(content))  # type: ignore[misc]
    return kept


def cached() -> dict[str, bytes] | None:
    """Return the files that are in the user's cache; None where they are not, or damaged."""
    with contextlib.suppress(OSError):
        kept = {name: (_place() / name).read_bytes() for name in SHA256}
        if _whole(kept):
            return kept
    return None


def _place() -> Path:
    return cache.folder(PACKAGE)


def _whole(files: dict[str, bytes]) -> bool:
    return all(hashlib.sha256(files[name]).hexdigest() == digest for name, digest in SHA256.items())


def _fetched() -> dict[str, bytes]:
    """Let npm fetch the package from the registry that it is set up for, and take the files out of it."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"A page needs {PACKAGE}, and npm, which fetches it, is not installed: install it, or {MEND}.")
    with tempfile.TemporaryDirectory() as place:
        settings = os.environ | {"npm_config_fetch_retries": "1"}
        try:
            done = subprocess.run(
                [npm, "pack", PACKAGE], cwd=place, env=settings, capture_output=True, text=True, timeout=SECONDS
            )
            code = re.search(r"^npm (?:error|ERR!) code (\w+)", done.stderr, re.MULTILINE)
            reason = code[1] if code else f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"it took longer than {SECONDS} seconds"
        archive = next(Path(place).glob("*.tgz"), None)
        if archive is None:
            raise InputError(f"npm could not fetch {PACKAGE} ({reason}): try again with a network, or {MEND}.")
        try:
            with tarfile.open(archive) as package:
                files = {name: package.extractfile(f"package/dist/{name}").read() for name in SHA256}  # type: ignore[union-attr]
        except (tarfile.TarError, KeyError, OSError, EOFError) as error:
            raise InputError(f"What npm fetched as {PACKAGE} is damaged ({error}): try again, or {MEND}.") from error
    if not _whole(files):
        raise InputError(f"What npm fetched is not the {PACKAGE} that is known here: {MEND}.")
    return files
