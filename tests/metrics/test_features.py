"""What metrics see: the networks, and features made or kept."""

import math
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import cleanfid.features
import numpy as np
import pytest
import torch
import torch_fidelity.feature_extractor_vgg16
from cleanfid.resize import build_resizer
from torch import Tensor, nn

from imletriton.data import cache, load_points
from imletriton.distance.weights import INCEPTION
from imletriton.errors import Fault, InputError
from imletriton.metrics.features import features, kept_features
from imletriton.metrics.networks import VGG16, Inception, Network

CPU = torch.device("cpu")
FACES = load_points("faces", 32)


class Means(Network):
    """The mean colour: features that a test can tell by itself."""

    name = "means"

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def prepare(self, images: Tensor) -> Tensor:
        return images.float()

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x.mean((2, 3))


class StandIn(nn.Module):
    """Takes the place of clean-fid's Inception, whose file has `layers`: 2048 times the mean of what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2048))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_features_follow_the_images_and_stop_at_each_count() -> None:
    told: list[int] = []
    all_of_them, some = features(FACES.split(7), [(Means(), 100), (Means(), 10)], CPU, told.append)
    torch.testing.assert_close(all_of_them, FACES.float().mean((2, 3)))
    assert torch.equal(some, all_of_them[:10])
    assert told[-1] == 100
    assert told == sorted(told)


def test_no_batch_of_features_outlives_the_next() -> None:
    """Kept one by one, the features of 10,000 pictures took gigabytes, by the gaps that they left in memory."""
    made: list[weakref.ref[Tensor]] = []

    class Watched(Means):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(ref() is not None for ref in made))
            made.append(weakref.ref(result := super().forward(x)))
            return result

    alive: list[int] = []
    found = features(FACES.split(10), [(Watched(), 100)], CPU)[0]
    assert torch.equal(found, FACES.float().mean((2, 3)))
    assert max(alive) <= 1


def test_the_next_images_are_made_while_the_network_looks() -> None:
    made = [threading.Event() for _ in range(10)]

    def images() -> Iterator[Tensor]:
        for batch, event in zip(FACES.split(10), made, strict=True):
            event.set()
            yield batch

    class Waits(Means):
        def forward(self, x: Tensor) -> Tensor:
            number = self.seen // 10
            if number < 9:
                assert made[number + 1].wait(20)  # the next batch
            assert not any(event.is_set() for event in made[number + 2 :])  # and no more
            return super().forward(x)

    features(images(), [(Waits(), 100)], CPU)


def test_what_goes_wrong_on_either_side_ends_both() -> None:
    def images() -> Iterator[Tensor]:
        yield FACES[:5]
        raise OSError("a disk")

    with pytest.raises(OSError, match="a disk"):
        features(images(), [(Means(), 100)], CPU)


def test_features_that_are_not_finite_are_told_with_the_images() -> None:
    class Broken(Means):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (self.seen < 20)

    with pytest.raises(Fault, match="the means network of images 14 to 20 are not all finite"):
        features(FACES.split(7), [(Broken(), 100)], CPU)


def test_features_of_data_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = Means()
    first = kept_features(FACES[:8], network, True, CPU)
    assert torch.equal(kept_features(FACES[:8], network, True, CPU), first)
    assert network.seen == 8
    kept_features(FACES[:8], network, False, CPU)  # other weights
    kept_features(FACES[1:9], network, True, CPU)
    assert network.seen == 24
    files = {file: file.read_bytes() for file in tmp_path.rglob("*.npy")}
    for damage in (lambda whole: b"half-writ", lambda whole: whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:]):
        for file, whole in files.items():
            file.write_bytes(damage(whole))
        assert torch.equal(kept_features(FACES[:8], network, True, CPU), first)
    assert network.seen == 40


def test_the_cache_of_features_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept_features(FACES[:8], Means(), True, CPU)
    (first,) = tmp_path.rglob("*.npy")
    monkeypatch.setattr(cache, "MAX_BYTES", int(2.1 * first.stat().st_size))
    os.utime(first, (1, 1))
    for k in (1, 2):
        kept_features(FACES[k : 8 + k], Means(), True, CPU)
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    assert not first.exists()


def test_features_need_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kept_features(FACES[:3], Means(), True, CPU).shape == (3, 3)


def test_inception_sees_what_clean_fids_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small network in the trained one's place, through clean-fid's own way to load it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "inception-2015-12-05.pt"
    file.parent.mkdir(parents=True)
    original = cleanfid.features.InceptionV3W
    torch.jit.script(StandIn()).save(str(file))
    monkeypatch.setattr(
        cleanfid.features, "InceptionV3W", lambda path, **kw: original(str(file.parent), download=False)
    )
    theirs = cleanfid.features.build_feature_extractor("clean", CPU, use_dataparallel=False)
    resize = build_resizer("clean")
    resized = np.stack([resize(face.permute(1, 2, 0).numpy()) for face in FACES[:5]]).transpose(0, 3, 1, 2)
    expected = theirs(torch.from_numpy(resized))
    assert torch.equal(features([FACES[:5]], [(Inception(True), 5)], CPU)[0], expected)
    file.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match=r"inception-2015-12-05\.pt does not hold the inception weights: remove it"):
        Inception(True)


@pytest.mark.slow  # a gigabyte of random weights
def test_vgg16_is_torch_fidelitys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same random weights in both."""
    ours = VGG16(False)
    found = features([FACES[:3]], [(ours, 3)], CPU)[0]
    whole = ours.network
    whole.classifier = nn.Sequential(*whole.classifier, nn.Identity(), nn.Identity())  # it cuts the last three off
    monkeypatch.setattr(
        torch_fidelity.feature_extractor_vgg16, "torchvision_load_pretrained_vgg16", lambda **arguments: whole
    )
    theirs = torch_fidelity.feature_extractor_vgg16.FeatureExtractorVGG16("vgg16", ["fc2_relu"])
    torch.testing.assert_close(found, theirs(FACES[:3])[0], rtol=1e-4, atol=1e-4)
    assert found.shape == (3, 4096)
    assert math.isfinite(found.sum())
    assert found.std() > 0.01


def test_random_inception_tells_pictures_apart_and_is_always_the_same() -> None:
    network = Inception(False)
    assert torch.equal(
        network.network.Mixed_7c.branch1x1.conv.weight, Inception(False).network.Mixed_7c.branch1x1.conv.weight
    )
    (one,) = features([FACES[:3]], [(network, 3)], CPU)
    assert one.shape == (3, 2048)
    assert one.std(0).mean() > 1e-3


def test_inception_weights_that_cannot_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object) -> None:
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError) as caught:
        Inception(True)
    for words in (INCEPTION, str(tmp_path / "hub/checkpoints/inception-2015-12-05.pt"), "`pretrained=False`"):
        assert words in str(caught.value)
