from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch_fidelity
from conftest import TINY, picture
from small_networks import SmallInception
from torch import Tensor
from torch_fidelity import registry
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from imletriton.commands.eval import evaluate
from imletriton.commands.fit import fit
from imletriton.data import load_points
from imletriton.errors import Fault, InputError
from imletriton.generator import Generator, latent_codes
from imletriton.recipe import Recipe
from imletriton.runs.run import Run
from imletriton.share.export import files as export
from imletriton.share.export import onnx_graph as conversion
from imletriton.share.export.files import Exported, export_onnx

FEW = {"train.iterations": 4, "log.checkpoint_every": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on a folder that is named like that of a known data set."""
    folder = tmp_path_factory.mktemp("export")
    pictures = folder / "datasets" / "ffhq100"
    pictures.mkdir(parents=True)
    for k in range(4):
        (pictures / f"{k}.png").write_bytes(picture(k))
    (folder / "tiny.toml").write_text(TINY)
    recipe = Recipe.load(folder / "tiny.toml", FEW | {"data.source": str(pictures)})
    return fit(recipe, folder / "tiny-001", device="cpu")


@pytest.fixture(scope="module")
def model(run: Run) -> Generator:
    return Generator.from_pretrained(run.path)


@pytest.fixture(scope="module")
def exported(run: Run) -> Exported:
    return export_onnx(run.path, run.path / "out" / "tiny.onnx")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, run: Run, model: Generator, exported: Exported) -> None:
    """Converting is left out: the graph that `exported` holds is taken again."""
    converted, facts = onnx.load(exported.path), {p.key: p.value for p in onnx.load(exported.path).metadata_props}
    del converted.graph.initializer[-1]  # of truncation
    made = converted, conversion.Truncated(model), facts
    monkeypatch.setattr(export, "_converted", lambda opened, progress: made)


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
    assert str(Path(conversion.__file__).parents[2]).encode() not in exported.path.read_bytes()
    told = {entry.key: entry.value for entry in graph.metadata_props}
    assert told.pop("imletriton")
    assert told == {
        "name": "tiny-001",
        "step": "4",
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
    measured = evaluate(run.path, data="faces", metrics=["fid"], n=n, pretrained=False).metrics["fid"].value

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


@pytest.mark.usefixtures("quick")
def test_a_file_whose_samples_are_not_pytorchs_is_not_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_text("an earlier one")
    monkeypatch.setattr(conversion, "compare", lambda file, truncated, progress: 2)
    with pytest.raises(Fault, match=r"m.onnx is not written, .* differ by up to 2 grey levels"):
        export_onnx(run.path, tmp_path / "m.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "an earlier one"


def test_comparing_sees_a_wrong_pixel_and_a_wrong_truncation(
    exported: Exported, model: Generator, tmp_path: Path
) -> None:
    truncated = conversion.Truncated(model)
    assert conversion.compare(exported.path, truncated) <= 1
    truncated.mean += 1
    assert conversion.compare(exported.path, truncated) > 1
    broken = onnx.load(exported.path)
    bias = next(value for value in broken.graph.initializer if list(value.dims) in ([3], [3, 1, 1]))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    onnx.save(broken, tmp_path / "broken.onnx")
    assert conversion.compare(tmp_path / "broken.onnx", conversion.Truncated(model)) > 1
    (tmp_path / "damaged.onnx").write_bytes(exported.path.read_bytes()[:-1000])
    with pytest.raises(Fault, match="onnxruntime cannot run what was exported"):
        conversion.compare(tmp_path / "damaged.onnx", truncated)


def test_what_cannot_be_exported_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.onnx"
    with pytest.raises(InputError, match=rf"is a folder: name a file in it, such as {tmp_path}/model.onnx"):
        export_onnx(run.path, tmp_path)
    with pytest.raises(InputError, match=r"m.pt is not named like an ONNX file"):
        export_onnx(run.path, tmp_path / "m.pt")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"m.onnx cannot be written \(Not a directory\): choose another file"):
        export_onnx(run.path, tmp_path / "file" / "m.onnx")
    Generator(2, "none", "mlp", width=4).save_pretrained(tmp_path / "points")
    with pytest.raises(InputError, match="points generates points, not pictures"):
        export_onnx(tmp_path / "points", file)
    monkeypatch.setattr(conversion, "LARGEST", 1000)
    with pytest.raises(InputError, match="more than an ONNX file can hold"):
        export_onnx(run.path, file)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.startswith("onnxr") else name)
    with pytest.raises(InputError, match=r'needs onnxruntime, .*: `pip install "imletriton\[export\]"`'):
        export_onnx(run.path, file)
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
