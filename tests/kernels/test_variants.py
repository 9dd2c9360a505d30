"""How many variants of each kernel are built: Triton builds one anew for each property of an argument it knows."""

import random
from collections import defaultdict
from typing import Any
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from imletriton.kernels.scan import scan_kernel
from imletriton.kernels.search import TritonSearch, count_within

MOST = 20
PROBLEMS = 400  # as many as the property test has on a GPU


def test_searches_of_any_size_build_few_variants() -> None:
    """Over problems such as those of the property test. No kernel runs."""
    backend, binders = make_backend(GPUTarget("cuda", 90, 32)), dict[str, Any]()
    variants: dict[str, set[str]] = defaultdict(set)

    def noted(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        name = kernel.fn.__name__
        if name not in binders:
            compiled = JITFunction(kernel.fn, **getattr(kernel, "kwargs", {}))
            binders[name] = create_function_from_signature(compiled.signature, compiled.params, backend)
        _, specialization, options = binders[name](*args, **kwargs)
        variants[name].add(str((specialization, options)))

    rng = random.Random(0)
    with patch.object(type(scan_kernel), "run", noted):
        for _ in range(PROBLEMS):
            n, m, d = rng.randint(1, 9), rng.randint(0, 150), rng.randint(1, 70)
            dtype = rng.choice([torch.float32, torch.float32, torch.float16, torch.bfloat16])
            both = torch.empty(n + m, d, dtype=dtype)
            searching = rng.choice([None, torch.zeros(n, dtype=torch.bool)])
            search = TritonSearch(both[:n], searching, rng.choice([0.0, 1.0]), rng.choice([1, 1, 1, 3]))
            cut = rng.randint(0, m)
            search.update(both[n : n + cut], 0)
            search.update(both[n + cut :], cut)
            count_within(both[:n], both[n:], torch.ones(m, dtype=torch.float64))
    counts = {name: len(found) for name, found in variants.items()}
    assert len(counts) == 8
    assert max(counts.values()) <= MOST, counts
