"""A run of each task is killed once in every phase; `.ci/nightly` kills a hundred more."""

import pytest

from tests.reliability.chaos import PHASES, make_data, torture
from tests.reliability.chaos_config import TASKS

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("task", TASKS)
def test_killed_runs_end_bit_equal_to_their_twins(task, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    make_data(data)
    hits = torture(task, len(PHASES) + 1, 0, tmp_path, data)
    assert set(hits) == {*PHASES, "evidence"} and all(hits.values()), hits
