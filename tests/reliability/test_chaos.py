"""Twelve and more seeded kills over every task; the length can be had with `python -m tests.reliability.chaos --kills=100`."""

import pytest

from tests.reliability.chaos import make_data, torture
from tests.reliability.chaos_config import TASKS

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("task", TASKS)
def test_killed_runs_end_bit_equal_to_their_twins(task, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    make_data(data)
    hits = torture(task, 3, 0, tmp_path, data)
    assert sum(hits.values()) == 3
