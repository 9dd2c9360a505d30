import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imletriton.commands.generate import generate
from imletriton.errors import InputError
from imletriton.generator import Generator


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one checkpoint."""
    torch.manual_seed(0)
    generator = Generator(latent_dim=4, mapping_layers=1, width=8, blocks="4x1,8m4")
    generator.save_pretrained(tmp_path / "run" / "checkpoints" / "000010")
    return tmp_path / "run"


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png"))


def test_samples_are_written_as_numbered_pngs(run: Path) -> None:
    folder, new = generate(run, 20, seed=3)
    assert folder == run / "gen" / "000010-seed-3"
    assert new == 20
    assert [p.name for p in pictures(folder)] == [f"{k:06d}.png" for k in range(20)]
    expected = Generator.from_pretrained(run).sample(20, seed=3)
    for k, path in enumerate(pictures(folder)):
        assert np.array_equal(np.asarray(Image.open(path)), expected[k].permute(1, 2, 0).numpy())


def test_from_inside_a_run_samples_still_go_to_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "checkpoints")
    assert generate(Path("000010"), 1)[0] == run / "gen" / "000010-seed-0"
    monkeypatch.chdir(run)
    assert generate(Path(), 1)[0] == Path("gen") / "000010-seed-0"


def test_only_missing_samples_are_made(run: Path) -> None:
    folder, _ = generate(run, 40)
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in pictures(folder)}
    lost = [folder / "000003.png", folder / "000037.png"]
    for path in lost:
        path.unlink()
    calls: list[int] = []
    assert generate(run, 45, progress=calls.append) == (folder, 7)
    assert calls[0] == 38
    assert calls[-1] == 45
    assert len(pictures(folder)) == 45
    for path, (content, time) in before.items():
        assert path.read_bytes() == content
        assert path in lost or path.stat().st_mtime_ns == time
    assert generate(run, 45) == (folder, 0)


def test_nothing_else_is_overwritten(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate(run, 2, out=out)
    with pytest.raises(InputError, match=r"another model or seed: .*`out=DIR`"):
        generate(run, 2, seed=1, out=out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "000000.png").write_text("precious")
    with pytest.raises(InputError, match="holds other files"):
        generate(run, 2, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "000000.png").read_text() == "precious"


def test_bad_sources_are_named(run: Path, tmp_path: Path) -> None:
    for n in (0, -3):
        with pytest.raises(InputError, match=f"`n` must be from 1 to 1000000, not {n}"):
            generate(run, n)
    with pytest.raises(InputError, match="is no folder"):
        generate(tmp_path / "none", 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no config\.json"):
        generate(tmp_path / "empty", 1)
    weights = run / "checkpoints" / "000010" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:50])
    with pytest.raises(InputError, match="is damaged"):
        generate(run, 1)
    weights.write_bytes(whole)
    config = weights.with_name("config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {"width": 4}))
    with pytest.raises(InputError, match="another architecture"):
        generate(run, 1)
    assert not (run / "gen").exists()


def test_points_are_not_pictures(tmp_path: Path) -> None:
    Generator(latent_dim=2, mapping="none", decoder="mlp", width=4).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="points, not pictures"):
        generate(tmp_path, 1)


@pytest.mark.parametrize("folder", ["/proc/imletriton", "/sys/imletriton", "{tmp}/file/below"])
def test_a_folder_that_cannot_be_written_is_named(run: Path, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(.*`out=DIR`"):
        generate(run, 1, out=Path(folder.format(tmp=tmp_path)))


def test_a_full_disk_leaves_no_half_picture(run: Path, tmp_path: Path) -> None:
    """Writing stops at a file size limit, with the same kind of error as a full disk."""
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", "imletriton", "gen", str(run), "--n", "5", "--out", str(out), "--device", "cpu"]

    def limit() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150, 150))

    result = subprocess.run(
        arguments,
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert result.returncode == 2, result.stderr
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(out.glob("*.png"))
    assert not list(out.glob(".*"))
