"""A model as an ONNX file and as a page; test_export_page.py looks at the page in a browser."""

import copy
import hashlib
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch_fidelity
from conftest import run_cli
from small_networks import SmallInception
from torch import Tensor
from torch_fidelity import registry
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from imletriton.commands.eval import evaluate
from imletriton.data import load_points
from imletriton.errors import Fault, InputError
from imletriton.generator import Generator, latent_codes
from imletriton.runs.opening import open_source
from imletriton.runs.run import Run
from imletriton.share.export import onnx_graph, onnxruntime_web
from imletriton.share.export.files import Exported, export_onnx, export_web
from imletriton.share.export.onnx_graph import Graph, Truncated, compare, convert
from imletriton.training.reporter import silent


@pytest.fixture(scope="module")
def run(trained_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose recipe names the folder of a known data set."""
    run = Run(shutil.copytree(trained_run.path, tmp_path_factory.mktemp("export") / "tiny <1>"))
    recipe = run.recipe_file.read_text()
    run.recipe_file.write_text(recipe.replace('source = "faces"', 'source = "/home/me/datasets/ffhq100"'))
    return run


@pytest.fixture(scope="module")
def model(run: Run) -> Generator:
    return Generator.from_pretrained(run)


@pytest.fixture(scope="module")
def graph(run: Run) -> Graph:
    """Converting takes seconds, and is done once."""
    return convert(open_source(run), silent)


@pytest.fixture
def converted(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports take `graph` instead of converting again."""
    monkeypatch.setattr(onnx_graph, "convert", lambda source, progress: copy.deepcopy(graph))


@pytest.fixture(scope="module")
def exported(run: Run, graph: Graph) -> Exported:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "convert", lambda source, progress: copy.deepcopy(graph))
        return export_onnx(run, run.path / "out" / "tiny.onnx")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stands for an unpacked onnxruntime-web."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "dist").mkdir()
    (folder / "dist" / onnxruntime_web.MODULE).write_text("module")
    (folder / "dist" / onnxruntime_web.WASM).write_bytes(b"\0asm")
    return folder


def draw(file: Path, **feeds: Tensor) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: value.numpy() for name, value in feeds.items()})


def test_an_exported_model_draws_in_batches_of_any_size_what_pytorch_draws(
    exported: Exported, model: Generator
) -> None:
    assert exported.bytes == exported.path.stat().st_size
    assert exported.difference <= 1
    for n in (1, 7, 40):
        z = latent_codes(0, n, model.latent_dim, seed=3)
        images, styles = draw(exported.path, z=z)
        assert images.dtype == np.uint8
        assert np.abs(images.astype(int) - model.sample(n, seed=3).numpy()).max() <= 1
        assert np.allclose(styles, model.mapping(z).detach(), atol=1e-5)


def test_truncation_pulls_styles_towards_their_mean(exported: Exported, model: Generator) -> None:
    mean = model.mapping(latent_codes(0, 10_000, model.latent_dim, seed=0)).mean(0)
    z = latent_codes(0, 6, model.latent_dim, seed=1)
    for truncation in (0.0, 0.3, 1.4):
        w = (1 - truncation) * mean + truncation * model.mapping(z)
        images, styles = draw(exported.path, z=z, truncation=torch.tensor(truncation))
        assert np.allclose(styles, w.detach(), atol=1e-5)
        assert np.abs(images.astype(int) - model.decoder.at_rest(model.decoder(w)).numpy()).max() <= 1
        assert (np.ptp(images, 0).max() == 0) == (truncation == 0)


def test_the_mapping_alone_can_be_taken_from_the_file(exported: Exported, model: Generator, tmp_path: Path) -> None:
    onnx.utils.extract_model(exported.path, tmp_path / "mapping.onnx", ["z"], ["styles"])
    assert len(onnx.load(tmp_path / "mapping.onnx").graph.node) < len(onnx.load(exported.path).graph.node) / 3
    z = latent_codes(0, 5, model.latent_dim, seed=2)
    assert np.allclose(draw(tmp_path / "mapping.onnx", z=z)[0], model.mapping(z).detach(), atol=1e-5)


def test_the_file_says_what_it_is(exported: Exported) -> None:
    graph = onnx.load(exported.path)
    onnx.checker.check_model(graph, full_check=True)
    assert str(Path(onnx_graph.__file__).parents[2]).encode() not in exported.path.read_bytes()
    told = {entry.key: entry.value for entry in graph.metadata_props}
    assert told.pop("imletriton")
    assert told == {
        "name": "tiny <1>",
        "step": "20",
        "resolution": "16",
        "latent_dim": "8",
        "licence": "of the training pictures: CC BY-NC-SA 4.0: FFHQ's; each picture has its photographer's besides",
    }


class Features(FeatureExtractorBase):
    """The network of `eval` in this test, as torch-fidelity wants it."""

    def __init__(self, name: str, features_list: list[str], **more: object) -> None:
        super().__init__(name, features_list)
        self.network = SmallInception(pretrained=False)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("small",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "small"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        return (self.network(self.network.prepare(images)),)


def test_torch_fidelity_gives_the_exported_file_the_fid_that_eval_gives_the_run(
    run: Run, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imletriton.metrics.networks.Inception", SmallInception)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    n, drawn = 60, 0
    measured = evaluate(run, data="faces", metrics=["fid"], n=n, pretrained=False).metrics["fid"].value

    def codes(rng: object, shape: tuple[int, int]) -> Tensor:  # those of `eval`, which are standard normal too
        nonlocal drawn
        drawn += shape[0]
        return latent_codes(drawn - shape[0], drawn, shape[1], seed=0)

    class Faces(torch.utils.data.Dataset[Tensor]):
        images = load_points("faces", 16)
        __len__ = lambda self: len(self.images)  # noqa: E731
        __getitem__ = lambda self, k: self.images[k]  # noqa: E731

    monkeypatch.setitem(registry.NOISE_SOURCE_REGISTRY, "normal", codes)
    monkeypatch.setitem(registry.FEATURE_EXTRACTORS_REGISTRY, "small", Features)
    judged = torch_fidelity.calculate_metrics(
        input1=str(exported.path),
        input1_model_z_type="normal",
        input1_model_z_size=8,
        input1_model_num_samples=n,
        input2=Faces(),
        fid=True,
        feature_extractor="small",
        feature_layer_fid="small",
        batch_size=25,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert drawn == n
    assert measured > 1e-3
    assert judged["frechet_inception_distance"] == pytest.approx(measured, rel=1e-3)


@pytest.mark.usefixtures("converted")
def test_a_file_whose_samples_are_not_pytorchs_is_not_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_text("an earlier one")
    monkeypatch.setattr(onnx_graph, "compare", lambda file, truncated, progress: 2)
    with pytest.raises(Fault, match=r"m.onnx was not written, .* differ by up to 2 grey levels"):
        export_onnx(run, tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "an earlier one"


def test_comparing_sees_a_wrong_pixel_and_a_wrong_truncation(
    exported: Exported, model: Generator, tmp_path: Path
) -> None:
    truncated = Truncated(model)
    assert compare(exported.path, truncated) <= 1
    truncated.mean += 1
    assert compare(exported.path, truncated) > 1
    broken = onnx.load(exported.path)
    bias = next(value for value in broken.graph.initializer if list(value.dims) in ([3], [3, 1, 1]))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    assert compare(tmp_path / "broken.onnx", Truncated(model)) > 1
    (tmp_path / "damaged.onnx").write_bytes(exported.path.read_bytes()[:-1000])
    with pytest.raises(Fault, match="onnxruntime cannot run what was exported"):
        compare(tmp_path / "damaged.onnx", truncated)


def test_what_cannot_be_exported_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.onnx"
    with pytest.raises(InputError, match=rf"is a folder: name a file in it, such as {tmp_path}/model.onnx"):
        export_onnx(run, tmp_path)
    with pytest.raises(InputError, match=r"m.pt is not named like an ONNX file"):
        export_onnx(run, tmp_path / "m.pt")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"m.onnx cannot be written \(Not a directory\): choose another file"):
        export_onnx(run, tmp_path / "file" / "m.onnx")
    Generator(2, "none", "mlp", width=4).save_pretrained(tmp_path / "points")
    with pytest.raises(InputError, match="points generates points, not pictures"):
        export_onnx(tmp_path / "points", file)
    monkeypatch.setattr(onnx_graph, "LARGEST", 1000)
    with pytest.raises(InputError, match="more than an ONNX file can hold"):
        export_onnx(run, file)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnxr") else name)
    with pytest.raises(InputError, match=r'needs onnxruntime, .*: `pip install "imletriton\[export\]"`'):
        export_onnx(run, file)
    assert not file.exists()


def test_a_decoder_that_pytorch_cannot_convert_is_told(install: Callable[..., None], tmp_path: Path) -> None:
    from imletriton.generator import Decoder, DecoderParameters

    class Settings(DecoderParameters):
        def shape(self) -> tuple[int, ...]:
            return (3, 4, 4)

    class Choosy(Decoder):
        name, Parameters, width = "choosy", Settings, 1

        def forward(self, w: Tensor) -> Tensor:
            return w[:, :3, None, None].expand(-1, 3, 4, 4) * (1 if float(w.sum()) > 0 else 2)

    Generator(8, "none", "choosy").save_pretrained(tmp_path / "choosy")
    with pytest.raises(Fault, match="PyTorch cannot convert the generator of choosy to ONNX"):
        export_onnx(tmp_path / "choosy", tmp_path / "m.onnx")


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("converted")
def test_a_page_names_its_model_and_loads_nothing_from_elsewhere(run: Run, package: Path, tmp_path: Path) -> None:
    page = export_web(run, tmp_path / "page", package).path
    html = (page / "index.html").read_text()
    for words in (
        "<h1>tiny &lt;1&gt;</h1>",
        "16 x 16 pixels",
        "trained for 20 steps",
        "licence of the training pictures",
    ):
        assert words in html
    texts = [file.read_text() for file in page.iterdir() if file.suffix in (".html", ".js", ".css")]
    assert set(re.findall(r"https?://[^\s\"`]+", " ".join(texts))) == {"http://localhost:8000"}
    assert sorted(str(file.relative_to(page)) for file in page.rglob("*") if file.is_file()) == [
        "icon.svg",
        "index.html",
        "latents.js",
        "model.onnx",
        f"onnxruntime/{onnxruntime_web.WASM}",
        f"onnxruntime/{onnxruntime_web.MODULE}",
        "page.css",
        "page.js",
        "worker.js",
    ]
    inputs = onnxruntime.InferenceSession(page / "model.onnx", providers=["CPUExecutionProvider"]).get_inputs()
    assert {value.name for value in inputs} == {"z", "truncation"}  # onnxruntime-web takes none that may be left out


@pytest.mark.usefixtures("converted")
def test_a_page_replaces_an_earlier_one_and_nothing_else(run: Run, package: Path, tmp_path: Path) -> None:
    folder = tmp_path / "page"
    for _ in range(2):
        (folder / "model.onnx").unlink(missing_ok=True)
        assert (export_web(run, folder, package).path / "model.onnx").is_file()
        (folder / ".nojekyll").touch()
    (folder / "index.html").unlink()  # as where an export was killed
    export_web(run, folder, package)
    (folder / "notes.txt").touch()
    with pytest.raises(InputError, match=r"page holds other files, such as notes.txt: choose an empty or new folder"):
        export_web(run, folder, package)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("my site")
    with pytest.raises(InputError, match=r"site holds other files, such as index\.html"):
        export_web(run, tmp_path / "site", package)
    with pytest.raises(InputError, match="is a file: name a folder"):
        export_web(run, tmp_path / "site" / "index.html", package)
    assert (tmp_path / "site" / "index.html").read_text() == "my site"


@pytest.mark.usefixtures("converted")
def test_the_command_line_says_what_it_wrote_and_what_it_checked(
    run: Run,
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_cli(monkeypatch, "export", str(run.path)) == 2
    assert "export needs --onnx FILE, --web DIR, or both." in capsys.readouterr().err
    arguments = ["export", str(run.path), "--web", str(tmp_path / "my page"), "--onnxruntime", str(package)]
    assert run_cli(monkeypatch, *arguments, "--onnx", str(tmp_path / "m.onnx")) == 0
    said = capsys.readouterr()
    assert "Exporting tiny <1>, step 20" in said.err
    assert said.out.count("Checked: 12 samples by onnxruntime and by PyTorch differ ") == 2
    assert f"python -m http.server --directory '{tmp_path / 'my page'}'" in said.out
    assert run_cli(monkeypatch, *arguments[:-1], str(tmp_path)) == 2
    assert "with --onnxruntime DIR" in capsys.readouterr().err


# -- onnxruntime-web --------------------------------------------------------------------------------------------------


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a program in the place of npm."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()

    def program(text: str) -> None:
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / "npm").chmod(0o755)

    return program


def test_npm_fetches_onnxruntime_web_once(
    npm: Callable[[str], None], package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as file:
        file.add(package, "package")
    npm(f"/bin/cp {tmp_path}/package.tgz .")
    with pytest.raises(InputError, match=r"onnxruntime-web@.* that npm fetched has unexpected content"):
        onnxruntime_web.runtime_files()
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (package / "dist").iterdir()}
    monkeypatch.setattr(onnxruntime_web, "SHA256", files)
    fetched = onnxruntime_web.runtime_files()
    assert fetched[onnxruntime_web.MODULE].decode() == "module"
    npm("exit 1")
    assert onnxruntime_web.runtime_files() == fetched
    next((tmp_path / "cache").rglob("*.wasm")).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"npm could not fetch .* \(exit code 1\)"):
        onnxruntime_web.runtime_files()


def test_where_npm_cannot_fetch_it_another_way_is_told(npm: Callable[[str], None], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"npm, which fetches it, is not installed: .* with `onnxruntime=DIR`"):
        onnxruntime_web.runtime_files()
    npm("echo 'npm error code ENETWORK' >&2; exit 1")
    with pytest.raises(
        InputError, match=r"npm could not fetch onnxruntime-web@\S+ \(ENETWORK\): try again with a network, or unpack"
    ):
        onnxruntime_web.runtime_files()
    npm("echo damaged > p.tgz")
    with pytest.raises(InputError, match=r"is damaged \(.*\): try again"):
        onnxruntime_web.runtime_files()
    with pytest.raises(InputError, match=r"ort.wasm.*mjs cannot be read \(No such file or directory\): unpack the"):
        onnxruntime_web.runtime_files(tmp_path)
