"""A model as an ONNX file, or as a page that draws new samples in a browser: what `imletriton export` calls."""

import hashlib
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imletriton.data import catalogue
from imletriton.errors import Fault, InputError
from imletriton.recipe import recipe_of
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.runs.run import write_whole
from imletriton.share.export import onnxruntime_web
from imletriton.system.checks import check_extra, check_writable
from imletriton.training.reporter import Progress, silent

if TYPE_CHECKING:  # wrong input is reported before PyTorch is imported
    from onnx import ModelProto

    from imletriton.share.export.onnx_graph import Truncated

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
MOST = 1  # grey level by which samples of an exported model may differ from PyTorch's
TEMPLATES = Path(__file__).parent / "web"
INDEX, MODEL, RUNTIME = "index.html", "model.onnx", "onnxruntime"
MARK = '<meta name="generator" content="imletriton">'  # by which an index.html is known to be replaceable


class Exported(NamedTuple):
    """What an export has written, and how its samples compare with those of PyTorch."""

    path: Path  # the file or folder
    bytes: int  # of all that was written
    samples: int  # that were compared
    difference: int  # the greatest between them, in grey levels from 0 to 255


def check_export(onnx: Path | None, web: Path | None) -> None:
    """Check where the ONNX file and the page are to be written, and that the packages for it are there.

    Raises:
        InputError: Packages of the extra `export` are missing, or the file or the folder cannot be written.
    """
    for package in PACKAGES:
        check_extra(package, "export")
    if onnx:
        if onnx.is_dir():
            raise InputError(f"{onnx} is a folder: name a file in it, such as {onnx / MODEL}.")
        if onnx.suffix.lower() != ".onnx":
            raise InputError(f"{onnx} is not named like an ONNX file, which is what is written: end its name in .onnx.")
        check_writable(onnx.parent, onnx, "choose another file")
    if web:
        _check_folder(web)


def export_onnx(source: str | PathLike[str] | Source | None, path: Path, progress: Progress = silent) -> Exported:
    """Write a model as an ONNX file, once onnxruntime has drawn the same samples from it as PyTorch.

    The inputs are z, float32 [batch, latent_dim], and truncation, float32 [], which may be left out; the outputs are
    images, uint8 [batch, 3, H, W], rounded as `Generator.sample` does, and styles, float32 [batch, style_dim]. Styles
    are m + truncation * (mapping(z) - m), where m is the mean style of 10,000 samples. The mapping alone is
    `onnx.utils.extract_model(path, "mapping.onnx", ["z"], ["styles"])`. The file's metadata holds name, step,
    resolution, latent_dim, imletriton and, where it is known, licence, that of the training pictures.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`.
        path: The file, named .onnx.
        progress: Called with the name of the work, how much of it is done, and how much there is.

    Returns:
        The file, and how its samples compare.

    Raises:
        InputError: The packages of the extra `export` are missing, the source cannot be used or generates points, or
            the file cannot be written.
        Fault: The model cannot be converted, or draws other samples in onnxruntime.
    """
    check_export(path, None)
    converted, truncated, _ = _converted(open_source(source), progress)

    from imletriton.share.export.onnx_graph import COMPARED, make_optional

    make_optional(converted)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        difference = _write_checked(path, converted, truncated, progress)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): choose another file.") from error
    return Exported(path, path.stat().st_size, COMPARED, difference)


def export_web(
    source: str | PathLike[str] | Source | None,
    folder: Path,
    onnxruntime: Path | None = None,
    progress: Progress = silent,
) -> Exported:
    """Write a model as a static page that draws new samples in the browser, by onnxruntime-web.

    Any web server can serve the folder, such as `python -m http.server`. The page loads nothing from elsewhere. Sample
    k of a seed is the same there as in `Generator.sample`, to one grey level.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`.
        folder: The folder: a new or empty one, or that of an earlier page, which is replaced.
        onnxruntime: The folder of an unpacked npm package onnxruntime-web; by default npm fetches it once, and it is
            kept in the user's cache.
        progress: Called with the name of the work, how much of it is done, and how much there is.

    Returns:
        The folder, and how the samples of its model.onnx compare.

    Raises:
        InputError: What `export_onnx` raises it for; or the folder holds other files, or onnxruntime-web cannot be had.
        Fault: The model cannot be converted, or draws other samples in onnxruntime.
    """
    check_export(None, folder)
    opened = open_source(source)
    progress("onnxruntime-web", 0, 1)
    runtime = onnxruntime_web.runtime_files(onnxruntime)
    progress("onnxruntime-web", 1, 1)
    converted, truncated, facts = _converted(opened, progress)

    import jinja2  # here, as it and PyTorch load slowly

    from imletriton.share.export.onnx_graph import COMPARED

    try:
        (folder / RUNTIME).mkdir(parents=True, exist_ok=True)
        difference = _write_checked(folder / MODEL, converted, truncated, progress)
        model = (folder / MODEL).read_bytes()
        environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
        index = environment.get_template(INDEX).render(
            facts,
            model=f"{MODEL}?{hashlib.sha256(model).hexdigest()[:12]}",  # a browser must not show an earlier one
            runtime=f"{RUNTIME}/{onnxruntime_web.WASM}",
            bytes=len(model) + len(runtime[onnxruntime_web.WASM]),
            facts=_sentences(facts, truncated),
        )
        files = {f"{RUNTIME}/{name}": content for name, content in runtime.items()}
        files |= {file.name: file.read_bytes() for file in sorted(TEMPLATES.iterdir()) if file.name != INDEX}
        files |= {INDEX: index.encode()}  # last, when all that it loads is there
        for name, content in files.items():
            write_whole(folder / name, lambda file, content=content: file.write_bytes(content))  # type: ignore[misc]
    except OSError as error:
        raise InputError(
            f"{error.filename or folder} cannot be written ({error.strerror}): choose another folder."
        ) from error
    return Exported(folder, len(model) + sum(map(len, files.values())), COMPARED, difference)


def _check_folder(folder: Path) -> None:
    """Raise InputError where a folder cannot be written, or holds what is not of a page of this command."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: name a folder for the page.")
    check_writable(folder, folder, "choose another folder")
    ours = {INDEX, MODEL, RUNTIME, *(file.name for file in TEMPLATES.iterdir())}
    others = (
        [p.name for p in folder.iterdir() if p.name not in ours and not p.name.startswith(".")]
        if folder.exists()
        else []
    )
    index = folder / INDEX
    if index.exists() and not (index.is_file() and MARK in index.read_text("utf-8", "replace")):
        others.append(INDEX)
    if others:
        raise InputError(f"{folder} holds other files, such as {min(others)}: choose an empty or new folder.")


def _converted(opened: Source, progress: Progress) -> "tuple[ModelProto, Truncated, dict[str, str]]":
    """Convert a model; also returns the facts that its file tells."""
    progress("converting", 0, 1)
    from imletriton.generator import Generator
    from imletriton.share.export.onnx_graph import to_onnx

    opened = opened.now()
    with still_there(opened.checkpoint):
        model, recipe = Generator.from_pretrained(opened), recipe_of(opened)
    if len(model.shape) != 3:
        raise InputError(f"{opened.name} generates points, not pictures: `imletriton show` draws them.")
    known = catalogue.named_by(recipe.data.source) if recipe else None
    facts = {
        "name": opened.name,
        "step": "" if opened.step is None else str(opened.step),
        "resolution": str(model.shape[-1]),
        "latent_dim": str(model.latent_dim),
        "licence": f"of the training pictures: {known.licence}" if known else "",
        "imletriton": version("imletriton"),
    }
    converted, truncated = to_onnx(model, {name: value for name, value in facts.items() if value})
    progress("converting", 1, 1)
    return converted, truncated, facts


def _write_checked(path: Path, converted: "ModelProto", truncated: "Truncated", progress: Progress) -> int:
    """Write an ONNX file, but only if its samples are those of PyTorch; returns the greatest difference."""
    from imletriton.share.export.onnx_graph import COMPARED, compare

    difference = 0

    def write(file: Path) -> None:
        nonlocal difference
        file.write_bytes(converted.SerializeToString())
        progress("comparing", 0, COMPARED)
        difference = compare(file, truncated, lambda done: progress("comparing", done, COMPARED))
        if difference > MOST:
            raise Fault(
                f"{path} is not written, as onnxruntime draws other samples from it than PyTorch: they differ by up to "
                f"{difference} grey levels."
            )

    write_whole(path, write)
    return difference


def _sentences(facts: dict[str, str], truncated: "Truncated") -> list[str]:
    """What the page says of its model."""
    weights = sum(weight.numel() for weight in truncated.model.parameters())
    said = [f"{facts['resolution']} x {facts['resolution']} pixels", f"{weights:,} weights"]
    said += [f"trained for {int(facts['step']):,} steps"] if facts["step"] else []
    return [*said, *([f"licence {facts['licence']}"] if facts["licence"] else [])]
