from collections.abc import Iterator

import pytest
from problems import ENGINES, searched_by

from imletriton.search import operands


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "cpu without bfloat16":
        monkeypatch.setattr(operands, "multiplies_bfloat16", lambda device: False)
    if request.param == "triton":
        pytest.importorskip("triton")
    with searched_by(request.param):
        yield request.param
