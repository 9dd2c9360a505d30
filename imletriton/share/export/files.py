"""A model as an ONNX file, or as a page that draws new samples in a browser: `imletriton export`."""

import hashlib
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from imletriton.errors import InputError
from imletriton.runs.opening import Source, open_source
from imletriton.runs.run import write_whole
from imletriton.share.export import onnxruntime_web
from imletriton.system.checks import check_extra, check_writable, writing
from imletriton.training.reporter import Progress, silent

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
TEMPLATES = Path(__file__).parent / "web"
INDEX, MODEL, RUNTIME = "index.html", "model.onnx", "onnxruntime"
MARK = '<meta name="generator" content="imletriton">'  # by which an index.html is known to be replaceable
FILE_MEND, FOLDER_MEND = "choose another file", "choose another folder"


class Exported(NamedTuple):
    """What an export has written, and how its samples compare with those of PyTorch."""

    path: Path  # the file or folder
    bytes: int  # of all that was written
    samples: int  # that were compared
    difference: int  # the greatest between them, in grey levels from 0 to 255


def export_onnx(
    source: str | PathLike[str] | Source | None,
    path: str | Path,
    progress: Progress = silent,
    note: Callable[[str], object] = lambda text: None,
) -> Exported:
    """Write a model as an ONNX file, once onnxruntime has drawn the same samples from it as PyTorch. Both use the CPU.

    The inputs are z, float32 [batch, latent_dim], and truncation, float32 [], which may be left out; the outputs are
    images, uint8 [batch, 3, H, W], rounded as `Generator.sample` does, and styles, float32 [batch, style_dim]. Styles
    are m + truncation * (mapping(z) - m), where m is the mean style of 10,000 samples. The mapping alone is
    `onnx.utils.extract_model(path, "mapping.onnx", ["z"], ["styles"])`. The file's metadata holds name, step,
    resolution, latent_dim, imletriton and, where it is known, the licence of the training pictures.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        path: The file, named .onnx.
        progress: Called with the name of the work, how much of it is done, and how much there is.
        note: Called with a sentence before PyTorch is imported, which takes seconds.

    Returns:
        The file, and how its samples compare.

    Raises:
        InputError: The packages of the extra `export` are missing, the source cannot be used or generates points, or
            the file cannot be written.
        Fault: The model cannot be converted, or draws other samples in onnxruntime.
    """
    _check_packages()
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file in it, such as {path / MODEL}.")
    if path.suffix.lower() != ".onnx":
        raise InputError(f"{path} is not named like an ONNX file: end its name in .onnx.")
    check_writable(path.parent, path, FILE_MEND)
    opened = open_source(source)
    note(f"Exporting {opened.title}: loading PyTorch.")

    from imletriton.share.export.onnx_graph import COMPARED, convert

    graph = convert(opened, progress)
    graph.make_truncation_optional()
    with writing(path, FILE_MEND):
        path.parent.mkdir(parents=True, exist_ok=True)
        difference = graph.write(path, progress)
    return Exported(path, path.stat().st_size, COMPARED, difference)


def export_web(
    source: str | PathLike[str] | Source | None,
    folder: str | Path,
    onnxruntime: str | Path | None = None,
    progress: Progress = silent,
    note: Callable[[str], object] = lambda text: None,
) -> Exported:
    """Write a model as a static page that draws new samples in the browser, by onnxruntime-web.

    Any web server can serve the folder, such as `python -m http.server`. The page loads nothing from elsewhere. Sample
    k of a seed is the same there as in `Generator.sample`, to one grey level.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        folder: The folder: a new or empty one, or that of an earlier page, which is replaced.
        onnxruntime: The folder of an unpacked npm package onnxruntime-web; by default npm fetches it once, and it is
            kept in the user's cache.
        progress: Called with the name of the work, how much of it is done, and how much there is.
        note: Called with a sentence before PyTorch is imported, which takes seconds.

    Returns:
        The folder, and how the samples of its model.onnx compare.

    Raises:
        InputError: As in `export_onnx`; or the folder holds other files, or onnxruntime-web is not available.
        Fault: The model cannot be converted, or draws other samples in onnxruntime.
    """
    _check_packages()
    folder = Path(folder)
    _check_folder(folder)
    opened = open_source(source)
    note(f"Exporting {opened.title}: loading PyTorch.")
    progress("onnxruntime-web", 0, 1)
    runtime = onnxruntime_web.runtime_files(Path(onnxruntime) if onnxruntime else None)
    progress("onnxruntime-web", 1, 1)

    import jinja2

    from imletriton.share.export.onnx_graph import COMPARED, convert

    graph = convert(opened, progress)
    with writing(folder, FOLDER_MEND):
        (folder / RUNTIME).mkdir(parents=True, exist_ok=True)
        difference = graph.write(folder / MODEL, progress)
        model = (folder / MODEL).read_bytes()
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
        index = environment.get_template(INDEX).render(
            graph.facts,
            model=f"{MODEL}?{hashlib.sha256(model).hexdigest()[:12]}",  # so that a browser does not show an earlier one
            runtime=f"{RUNTIME}/{onnxruntime_web.WASM}",
            bytes=len(model) + len(runtime[onnxruntime_web.WASM]),
            weights=graph.weights,
        )
        files = {f"{RUNTIME}/{name}": content for name, content in runtime.items()}
        files |= {file.name: file.read_bytes() for file in sorted(TEMPLATES.iterdir()) if file.name != INDEX}
        files |= {INDEX: index.encode()}  # last, when all that it loads is there
        for name, content in files.items():
            write_whole(folder / name, lambda file, content=content: file.write_bytes(content))  # type: ignore[misc]
    return Exported(folder, len(model) + sum(map(len, files.values())), COMPARED, difference)


def _check_packages() -> None:
    for package in PACKAGES:
        check_extra(package, "export")


def _check_folder(folder: Path) -> None:
    """Raise InputError where a folder cannot be written, or holds anything but an earlier page."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder for the page.")
    check_writable(folder, folder, FOLDER_MEND)
    ours = {MODEL, RUNTIME, *(file.name for file in TEMPLATES.iterdir())}
    names = [file.name for file in folder.iterdir() if not file.name.startswith(".")] if folder.exists() else []
    others = [name for name in names if name not in ours]
    if INDEX in names and MARK not in (folder / INDEX).read_text("utf-8", "replace"):
        others.append(INDEX)
    if others:
        raise InputError(f"{folder} holds other files, such as {min(others)}: choose an empty or new folder.")
