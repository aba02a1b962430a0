"""A run of each task is killed twelve times; more can be had with `python -m tests.reliability.chaos --kills=100`."""

import pytest

from tests.reliability.chaos import LIMIT, make_data, torture
from tests.reliability.chaos_config import TASKS

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("task", TASKS)
def test_killed_runs_end_bit_equal_to_their_twins(task, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    make_data(data)
    hits = torture(task, LIMIT, 0, tmp_path, data)
    assert sum(hits.values()) == LIMIT >= 12 and all(hits.values()), hits
