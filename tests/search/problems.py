"""Difficult queries and samples, and the engines that search them."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from imletriton.search import bounds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where Triton's kernels run here; interpreted on a CPU
ENGINES = ["cpu", "cpu without bfloat16", "triton"]
TIGHT = 1e-6  # the contract's relative tolerance for which sample is nearest
Problem = tuple[Tensor, Tensor, list[int]]  # queries [n, d], samples [m, d] and the sizes of chunks
# Examples of a property that the kernels are tested for, which takes seconds each where they are interpreted.
KERNEL_EXAMPLES = 400 if DEVICE == "cuda" else max(4, settings.default.max_examples // 10)
KINDS = ["normal", "offset", "huge", "tiny", "mixed", "clusters", "sphere", "equal", "near duplicates", "half"]


def device_of(engine: str) -> str:
    return DEVICE if engine == "triton" else "cpu"


def is_interpreted(engine: str) -> bool:
    """Whether this engine is so slow here that tests have to be small."""
    return engine == "triton" and DEVICE == "cpu"


@contextmanager
def searched_by(engine: str) -> Iterator[None]:
    """A context in which vectors on device_of(engine) are searched by this engine."""
    with patch("imletriton.search.backends.on_gpu", lambda vectors: engine == "triton"):
        yield


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "cpu without bfloat16":
        monkeypatch.setattr(bounds, "multiplies_bfloat16", lambda device: False)
    if request.param == "triton":
        pytest.importorskip("triton")
    with searched_by(request.param):
        yield request.param


def vectors(kind: str, k: int, d: int, generator: torch.Generator) -> Tensor:
    """Difficult vectors, float32 except for "half"."""
    v = torch.randn(k, d, generator=generator)
    if kind == "offset":
        return v * 1e-2 + 1e4
    if kind == "huge":
        return v * (1e15 / d**0.5)
    if kind == "tiny":
        return v * (1e-15 / d**0.5)
    if kind == "mixed":
        return v * 10.0 ** torch.empty(k, 1).uniform_(-15, 15, generator=generator)
    if kind == "clusters":
        return v * 1e-3 + torch.randint(2, (k, 1), generator=generator) * 1e4
    if kind == "sphere":
        return v / v.norm(dim=1, keepdim=True)
    if kind == "equal":
        return torch.ones(k, d)
    if kind == "near duplicates":
        return 1 + v * 1e-6
    return (v.clamp(-2.5, 2.5) * 2.5e4).half() if kind == "half" else v


@st.composite
def problems(draw: st.DrawFn, most: int = 60) -> Problem:
    n, m, d = draw(st.integers(1, 9)), draw(st.integers(0, most)), draw(st.integers(1, 70))
    kind = draw(st.sampled_from(KINDS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    both = vectors(kind, n + m, d, generator)
    if kind == "normal":
        both = both.to(draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])))
    queries, samples = both[:n], both[n:]
    if draw(st.booleans()) and m > 1:
        samples[m // 2 :] = samples[: m - m // 2].clone()  # duplicates
    if draw(st.booleans()) and m:
        samples[-1] = queries[0]  # distance 0
    if draw(st.booleans()) and m:
        samples[0, 0] = draw(st.sampled_from([torch.inf, -torch.inf, torch.nan]))
    cuts = sorted(draw(st.lists(st.integers(0, m), max_size=3)))
    return queries, samples, [b - a for a, b in zip([0, *cuts], [*cuts, m], strict=True)]


def distances(queries: Tensor, samples: Tensor) -> Tensor:
    """All squared distances in float64 [n, m], inf to samples that are not finite."""
    sq = (queries.double()[:, None] - samples.double()[None]).square().sum(2)
    return torch.where(samples.isfinite().all(1), sq, torch.inf)
