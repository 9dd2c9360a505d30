import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks import measure, methods, nearest

ROOT = Path(__file__).parents[1]


def test_the_table_tells_exact_from_nearly_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, device = (20, 300, 40), torch.device("cpu")
    chosen = ("imletriton", "addmm in blocks + min", "flash-kmeans")
    monkeypatch.setattr(nearest, "METHODS", {name: methods.METHODS[name] for name in chosen})
    monkeypatch.setattr(nearest, "SHAPES", [shape])
    monkeypatch.setattr(measure, "SECONDS", 0.01)
    monkeypatch.setattr(nearest, "peak_flops", lambda device, dtype: 1e12)
    text = io.StringIO()
    result = nearest.run(device, [shape], Console(file=text, width=150))
    json.dumps(result)
    rows = {(r["method"], r["data"]): r for r in result["rows"]}
    assert rows["float32 product", "normal"]["over_float32_product"] == 1
    for data in nearest.DATA:
        assert rows["imletriton", data]["nearest"] == 1
        assert rows["imletriton", data]["distance_error"] < 1e-5
        assert rows["imletriton", data]["seconds"] > 0
    offset = rows["addmm in blocks + min", "offset 10^4, distances 10^-2"]
    assert offset["nearest"] < 1
    assert offset["distance_error"] > 1e-2
    assert rows["flash-kmeans", "normal"]["why"] == "needs CUDA"
    assert "needs CUDA" in text.getvalue()


def test_a_checkout_runs_where_it_is_not_installed(tmp_path: Path) -> None:
    for name in ("imletriton", "kernels", "benchmarks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    program = (
        "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]; sys.path.insert(0, '.');"
        "import imletriton.kernels.launch as launch, benchmarks.nearest; print(launch.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "kernels" / "launch.py"), done.stderr
