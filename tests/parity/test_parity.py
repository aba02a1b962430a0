"""Our models are the published ones: the same outputs and the same gradients from the same weights, in both directions."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.cases import CASES  # noqa: E402
from tests.parity.reference import Pair  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("name", CASES)
def test_outputs_gradients_and_the_way_back(name, tmp_path):
    pair = Pair(CASES[name], tmp_path / "theirs")
    outputs, gradient = pair.compare()
    assert not {name: value for name, value in outputs.items() if not value <= 1e-5}
    assert gradient <= 1e-4, pair.worst
    pair.check_return(tmp_path / "ours")
