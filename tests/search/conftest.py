import pytest
from problems import ENGINES

from imletriton.search import operands


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cpu without bfloat16":
        monkeypatch.setattr(operands, "multiplies_bfloat16", lambda device: False)
    return str(request.param)
