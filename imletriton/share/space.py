"""A Hugging Face Space with the page of `imletriton explore`: `imletriton explore --space`."""

import json
import os
import platform
import re
import shutil
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any

from imletriton.errors import InputError
from imletriton.generator.parameters import DECODERS, MAPPINGS
from imletriton.runs.checkpoint import MODEL_FILES
from imletriton.runs.opening import Source, open_source, still_there
from imletriton.runs.reading import read_json
from imletriton.system.checks import check_extra, check_new_folder, writing

PACKAGE = Path(__file__).parents[1]
# What the page imports. The package itself is copied, so that the Space shows the page that was seen here.
REQUIREMENTS = (
    "einops",
    "gradio",
    "huggingface-hub",
    "lpips",
    "numpy",
    "pillow",
    "pydantic",
    "safetensors",
    "torch",
    "torchvision",
)

APP = '''"""A page to play with the model; see README.md."""

import os
from pathlib import Path

from imletriton.share.explore import explore

(model,) = (Path(__file__).parent / "models").iterdir()
# A Space sets these two. Elsewhere, only this machine can open the page.
host, port = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), os.environ.get("GRADIO_SERVER_PORT")
explore(model, host, int(port) if port else None, keep=False)
'''

README = """---
title: {title}
emoji: 🖼️
colorFrom: green
colorTo: blue
sdk: gradio
sdk_version: {gradio}
python_version: "{python}"
app_file: app.py
---

A page to play with {name}, an image generator that was trained from scratch on a few pictures by IMLE with imletriton.
It shows samples, their neighbours, mixes and interpolations, and finds the picture of the model that is most like a
photo. After `pip install -r requirements.txt`, `python app.py` shows it on any machine.

The pictures that the model was trained on are not included.
"""


def write_space(source: str | PathLike[str] | Source | None, out: str | Path) -> Path:
    """Write the folder of a Hugging Face Space: app.py, requirements.txt, README.md, the model and this package.

    Args:
        source: A run, a checkpoint, a folder with a model, or a Hub id; see `open_source`. None: the newest run.
        out: The folder, which must be new or empty. It appears as a whole or not at all.

    Returns:
        The folder.

    Raises:
        InputError: The source cannot be used or needs code of another package, or the folder holds something or cannot
            be written.
    """
    check_extra("gradio", "explore")
    out = Path(out)
    check_new_folder(out, "space")
    source = open_source(source)
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with writing(out, "choose another folder with `space=DIR`"), still_there(source.checkpoint):
            unfinished.mkdir(parents=True)
            _write(source, unfinished)
            if out.exists():
                out.rmdir()
            unfinished.rename(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return out


def _write(source: Source, folder: Path) -> None:
    config = read_json(source.checkpoint / "config.json", dict[str, Any], "use another checkpoint")
    for registry, key in ((MAPPINGS, "mapping"), (DECODERS, "decoder")):
        if (name := config.get(key)) not in registry.built_in:
            raise InputError(f"{source.name} has the {key} {name!r} of another package, which a Space would lack.")
    name = source.name.rpartition("/")[2]
    model = folder / "models" / (re.sub(r"[^\w.-]+", "-", name).strip(".") or "model")
    model.mkdir(parents=True)
    for file in MODEL_FILES:
        shutil.copyfile(source.checkpoint / file, model / file)
    shutil.copytree(PACKAGE, folder / "imletriton", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "app.py").write_text(APP, "utf-8")
    needed = "".join(f"{package}=={version(package).partition('+')[0]}\n" for package in REQUIREMENTS)
    (folder / "requirements.txt").write_text(needed, "utf-8")
    python = ".".join(platform.python_version_tuple()[:2])
    readme = README.format(title=json.dumps(source.name), name=name, gradio=version("gradio"), python=python)
    (folder / "README.md").write_text(readme, "utf-8")
