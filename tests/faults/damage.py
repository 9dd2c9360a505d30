"""Every file of a run, damaged in every way, and every command that may meet it.

Damage to values in a checkpoint, which the SHA-256 sums reveal, is done twice: the second time the sums are made to
match, so that only the values themselves can reveal it.
"""

import contextlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import command, fit, forked, new_folder
from safetensors.torch import load_file, save_file

from imletriton.errors import InputError
from imletriton.generator import Generator
from imletriton.runs.checkpoint import _sealed, _sum

SUMMED = ("config.json", "model.safetensors", "trainer.safetensors", "trainer.json")
NEWEST, BEFORE = "checkpoints/000030", "checkpoints/000020"
WRONG = [None, [], {}, "x", -1, 1e308, 10**30, True, float("nan"), [[1]]]  # values of types that are not expected
IMPOSSIBLE = [-1, -1e9, 0, 1e308, 10**15, float("inf"), float("nan")]  # numbers that no run can have


class Place(NamedTuple):
    """What is damaged: a file or folder, another one of its kind, and the random stream that decides on details."""

    path: Path
    other: Path
    rng: random.Random


Damage = Callable[[Place], object]


# -- any file ---------------------------------------------------------------------------------------------------------


def with_content(change: Callable[[bytes, random.Random], bytes]) -> Damage:
    return lambda at: at.path.write_bytes(change(at.path.read_bytes(), at.rng))


def flipped(share: float) -> Damage:
    """One bit, at this share of the file's length."""

    def flip(content: bytes, rng: random.Random) -> bytes:
        changed = bytearray(content)
        changed[int(share * (len(content) - 1))] ^= 1 << rng.randrange(8)
        return bytes(changed)

    return with_content(flip)


def not_text(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content))
    return content[:at] + b"\xff\xfe\x80" + content[at:]


def in_place(make: Callable[[Path], object]) -> Damage:
    """Something else in the place of a file."""

    def replace(at: Place) -> None:
        at.path.unlink()
        make(at.path)

    return replace


def full_folder(path: Path) -> None:
    path.mkdir()
    (path / "x").write_text("x")


def swapped(at: Place) -> None:
    at.path.unlink()
    shutil.copy(at.other, at.path)


ANY: dict[str, Damage] = {
    "removed": lambda at: at.path.unlink(),
    "emptied": with_content(lambda content, rng: b""),
    "cut in half": with_content(lambda content, rng: content[: len(content) // 2]),
    "cut somewhere": with_content(lambda content, rng: content[: rng.randrange(len(content))]),
    "without its last byte": with_content(lambda content, rng: content[:-1]),
    "longer": with_content(lambda content, rng: content + b"x" * 9),
    "flipped at its start": flipped(0.001),
    "flipped in its middle": flipped(0.5),
    "flipped at its end": flipped(0.99),
    "zeros": with_content(lambda content, rng: bytes(len(content))),
    "noise": with_content(lambda content, rng: rng.randbytes(len(content))),
    "not UTF-8": with_content(not_text),
    "a folder": in_place(Path.mkdir),
    "a full folder": in_place(full_folder),
    "a pipe": in_place(os.mkfifo),
    "a link to nothing": in_place(lambda path: path.symlink_to("/nonexistent/place")),
    "a link to itself": in_place(lambda path: path.symlink_to(path.name)),
    "without an end": in_place(lambda path: path.symlink_to("/dev/zero")),
    "of another run": swapped,
}


# -- JSON -------------------------------------------------------------------------------------------------------------


def with_values(change: Callable[[dict[str, Any], random.Random], object]) -> Damage:
    """Change the object in a JSON file, or each line's."""

    def apply(at: Place) -> None:
        text = at.path.read_text()
        values = [json.loads(line) for line in (text.splitlines() if at.path.suffix == ".jsonl" else [text])]
        for value in values:
            change(value, at.rng)
        at.path.write_text("\n".join(map(json.dumps, values)))

    return apply


def wrong_type(values: dict[str, Any], rng: random.Random) -> None:
    inner = [value for value in values.values() if isinstance(value, dict) and value]
    target = rng.choice(inner) if inner and rng.random() < 0.3 else values
    target[rng.choice(sorted(target))] = rng.choice(WRONG)


def impossible(values: dict[str, Any], rng: random.Random) -> None:
    for key, value in values.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.5:
            values[key] = rng.choice(IMPOSSIBLE)


VALUES: dict[str, Damage] = {
    "a value of another type": with_values(wrong_type),
    "impossible numbers": with_values(impossible),
    "without a key": with_values(lambda values, rng: values.pop(rng.choice(sorted(values)))),
}
JSON: dict[str, Damage] = VALUES | {
    name: lambda at, content=content: at.path.write_bytes(content)  # type: ignore[misc]
    for name, content in {
        "null": b"null",
        "a list": b"[]",
        "a number": b"5",
        "an empty object": b"{}",
        "nested 100,000 deep": b"[" * 10**5,
        "an integer of 5,000 digits": b'{"step": ' + b"9" * 5000 + b"}",
        "a key twice": b'{"step": 1, "step": 2}',
    }.items()
}


# -- safetensors ------------------------------------------------------------------------------------------------------


def with_tensors(change: Callable[[dict[str, torch.Tensor], str], object]) -> Damage:
    """Change the tensors of a file; one of them is named."""

    def apply(at: Place) -> None:
        tensors = load_file(at.path)
        change(tensors, at.rng.choice(sorted(key for key, value in tensors.items() if value.is_floating_point())))
        save_file(tensors, at.path)

    return apply


def without_moments(at: Place) -> None:
    tensors = load_file(at.path)
    save_file({key: value for key, value in tensors.items() if not key.startswith("optimizer.exp_avg.")}, at.path)


TENSORS: dict[str, Damage] = {
    "NaN in a tensor": with_tensors(lambda tensors, name: tensors[name].view(-1)[:1].fill_(torch.nan)),
    "without a tensor": with_tensors(lambda tensors, name: tensors.pop(name)),
    "a tensor of another shape": with_tensors(lambda tensors, name: tensors.update({name: torch.zeros(3, 5, 2)})),
    "a tensor of another type": with_tensors(lambda tensors, name: tensors.update({name: tensors[name].char()})),
    "a header of 2^63 bytes": with_content(lambda content, rng: b"\xff" * 7 + b"\x7f" + content[8:]),
    "a header that is null": lambda at: at.path.write_bytes((4).to_bytes(8, "little") + b"null"),
}


def from_before(at: Place) -> None:
    """The same file of the checkpoint before."""
    shutil.copy(at.path.parents[1] / BEFORE.split("/")[1] / at.path.name, at.path)


def with_new_sums(damage: Damage) -> Damage:
    def apply(at: Place) -> None:
        damage(at)
        state = at.path.parent / "trainer.json"
        with contextlib.suppress(Exception):  # JSON that is not a checkpoint's state stays as it is
            sums = {name: _sum(at.path.parent / name) for name in SUMMED if name != state.name}
            state.write_text(_sealed(json.loads(state.read_text()) | {"sha256": sums}))

    return apply


def and_with_new_sums(kinds: dict[str, Damage]) -> dict[str, Damage]:
    return kinds | {f"{name}, with new sums": with_new_sums(damage) for name, damage in kinds.items()}


# -- folders ----------------------------------------------------------------------------------------------------------


def in_place_of_folder(make: Callable[[Place], object]) -> Damage:
    def replace(at: Place) -> None:
        shutil.rmtree(at.path)
        make(at)

    return replace


FOLDER: dict[str, Damage] = {
    "removed": in_place_of_folder(lambda at: None),
    "a file": in_place_of_folder(lambda at: at.path.write_text("x")),
    "emptied": in_place_of_folder(lambda at: at.path.mkdir()),
}
CHECKPOINT: dict[str, Damage] = FOLDER | {
    "renamed": lambda at: at.path.rename(at.path.with_name("000031")),
    "the one before": in_place_of_folder(lambda at: shutil.copytree(at.path.parent / "000020", at.path)),
}


# -- all together -----------------------------------------------------------------------------------------------------

DAMAGE: dict[str, dict[str, Damage]] = {
    f"{NEWEST}/config.json": ANY | JSON | and_with_new_sums(VALUES),
    f"{NEWEST}/model.safetensors": ANY | {"of the checkpoint before": from_before} | and_with_new_sums(TENSORS),
    f"{NEWEST}/trainer.safetensors": ANY
    | {"of the checkpoint before": from_before}
    | and_with_new_sums(TENSORS | {"without moments": without_moments}),
    f"{NEWEST}/trainer.json": ANY | JSON | {"of the checkpoint before": from_before} | and_with_new_sums(VALUES),
    f"{NEWEST}/README.md": ANY,
    "log.jsonl": ANY | JSON,
    "eval.json": ANY | JSON,
    "gen/000030-seed-0/gen.json": ANY | JSON,
    "recipe.toml": ANY,
    "gen/000030-seed-0/000001.png": ANY,
    "samples/000030.png": ANY,
    NEWEST: CHECKPOINT,
    "checkpoints": FOLDER,
    "samples": FOLDER,
    "gen": FOLDER,
    "figures": FOLDER,
}


def from_pretrained() -> int:
    """What a Python user does."""
    try:
        Generator.from_pretrained("run").sample(2)
    except InputError as error:
        print(f"error: {error}")
        return 2
    return 0


CHECKPOINT_PATH = f"run/{NEWEST}"
COMMANDS: dict[str, list[str]] = {
    "fit --resume": fit("--resume", "--set", "train.iterations=40"),
    "gen": ["gen", "run", "--n", "3", "--device", "cpu"],
    "gen of the checkpoint": ["gen", CHECKPOINT_PATH, "--n", "3", "--device", "cpu"],
    "eval": ["eval", "run", "--n", "20", "--metrics", "fid", "--json", "--device", "cpu"],
    "eval of the checkpoint": ["eval", CHECKPOINT_PATH, "--n", "20", "--metrics", "fid", "--device", "cpu"],
    "show": ["show", "run"],
    "show of the checkpoint": ["show", CHECKPOINT_PATH, "samples"],
    "report": ["report", "run"],
    "from_pretrained": [],
}


def cases() -> list[tuple[str, str, str]]:
    """All of them: the file, the damage and the command."""
    return [(file, kind, name) for file, kinds in DAMAGE.items() for kind in kinds for name in COMMANDS]


def case(base: Path, seed: int, file: str, kind: str, name: str) -> list[str]:
    """Damage a file of a copy of the run, and run a command; what is wrong then."""
    with new_folder(base) as here:
        shutil.copy(base / "tiny.toml", here)
        shutil.copytree(base / "run", here / "run")
        damaged = here / "run" / file
        original = damaged.read_bytes() if damaged.is_file() else b""
        DAMAGE[file][kind](Place(damaged, base / "other" / "run" / file, random.Random(f"{seed} {file} {kind}")))
        good, changed = _good(here / "run"), not damaged.is_file() or damaged.read_bytes() != original
        ended = forked(lambda: command(*COMMANDS[name]) if COMMANDS[name] else from_pretrained(), here)
        problems, after = ended.problems(), _good(here / "run")
        if name != "fit --resume" or ended.code:  # which removes old checkpoints once it has saved new ones
            problems += [f"changed the good file {path}" for path in good if after.get(path) != good[path]]
        elif "on from step" not in ended.output and "begins again at step 0" not in ended.output:
            problems.append(f"began again without a word: {ended.output}")
        told = ended.code or "damaged" in ended.output or "another checkpoint" in ended.output
        if Path(file).name in SUMMED and changed and "new sums" not in kind and not told:
            problems.append(f"took a damaged checkpoint without a word: {ended.output}")
    return problems


def _good(run: Path) -> dict[Path, bytes]:
    """The content of the checkpoints before the newest."""
    steps = (run / "checkpoints" / "000010", run / "checkpoints" / "000020")
    files = (path for step in steps for path in step.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(run): path.read_bytes() for path in files}
