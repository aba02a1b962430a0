"""What the documents say is there: settings, links, numbers' files, and the task that one of them writes."""

import importlib.util
import pathlib
import re
import sys

import jax
import numpy as np
import pytest

from ssl_jax import config as configs
from ssl_jax import pretext, runs
from ssl_jax.evidence import panel_batch
from tests.keys import toy_key

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_reference_of_settings_is_that_of_the_code():
    """Otherwise: python docs/settings.py."""
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "docs" / "settings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert module.page() == written, "docs/settings.md is not that of the code; run: python docs/settings.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_configs_of_a_document_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if not re.match(r"https?:|#", link)]
    files = re.findall(r"--(?:config|experiment)=((?:configs|experiments)/[\w/.]+\.py)", text)
    missing = [link for link in links if link and not (page.parent / link).exists()]
    assert not missing + [file for file in files if not (ROOT / file).is_file()]


@pytest.fixture
def rotation(tmp_path, monkeypatch):
    """The config of docs/own_task.md on small data; its task is registered."""
    task, config = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own_task.md").read_text(), re.DOTALL)
    assert len(task.splitlines()) <= 70
    (tmp_path / "rotation_of_the_document.py").write_text(task)
    (tmp_path / "config.py").write_text(config)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(pretext.TASKS, "rotation", "rotation_of_the_document:Rotation")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", image=random.integers(0, 256, (32, 8, 8, 1), np.uint8), label=np.arange(32) % 2)
    changes = {"data.train": f"npz:{tmp_path / 'x.npz'}", "data.test": f"npz:{tmp_path / 'x.npz'}", "data.batch_size": "8",
               "model.patch_size": "4", "model.width": "16", "training.duration": "3 steps"}  # fmt: skip
    yield configs.load(str(tmp_path / "config.py"), changes)
    sys.modules.pop("rotation_of_the_document", None)


def test_the_task_of_the_document_learns(rotation):
    parts = runs.prepare(rotation)
    batch = panel_batch(parts.dataset("train", False), 8) | {"position": np.arange(8, dtype=np.int32)}
    params = jax.jit(parts.task.init)(toy_key(0), batch)
    of = lambda p: parts.task.loss(p, batch, jax.random.key(1), train=True)
    (loss, metrics), gradient = jax.jit(jax.value_and_grad(of, has_aux=True))(params)
    assert 0.5 < loss < 3 and 0 <= metrics["accuracy"] <= 1
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient["head"]))
    assert jax.eval_shape(parts.task.features, params, batch)["mean"].shape == (8, 16)


@pytest.mark.slow
def test_the_task_of_the_document_runs(rotation, tmp_path):
    assert runs.run(rotation, str(tmp_path / "run")) == 0
    assert "knn" in (tmp_path / "run" / "results.json").read_text()
