"""The shapes that experiments/throughput times are the published ones, and its tables find their place."""

import math
import pathlib
import sys

import jax
import pytest

from ssl_jax import bench_peer

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "experiments" / "throughput"))

import measure  # noqa: E402
import shapes  # noqa: E402


def parameters(parts):
    batch = {name: jax.ShapeDtypeStruct((2, *s.shape), s.dtype) for name, s in parts.info.shapes.items()}
    return sum(math.prod(p.shape) for p in jax.tree.leaves(jax.eval_shape(parts.task.init, jax.random.key(0), batch)))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("GPT-2 124M, T=1024", 124_439_808 + 47 * 768),  # 50,257 tokens padded to 50,304
        ("BERT-base, T=128", 109_514_298 - 384 * 768),  # BertForMaskedLM, with 128 of its 512 positions
        ("BERT-base, T=512", 109_514_298),
        ("CLIP ViT-B/32", 151_277_313),
        ("CLIP ViT-B/16", 149_620_737),
    ],
)
def test_a_shape_has_the_published_number_of_parameters(name, count, monkeypatch):
    found = shapes.gpu()[name]
    found.config.data.batch_size = 2
    assert parameters(shapes.prepare(found)) == count


@pytest.mark.parametrize("name", list(shapes.gpu(tiny=True)))
def test_every_shape_has_a_peer(name):
    shape = shapes.gpu(tiny=True)[name]
    parts = shapes.prepare(shape)
    assert bench_peer.reference(parts.task, shape.config)["inputs"]
    raw = parts.stream.host_batch(0)
    batch = jax.eval_shape(parts.stream.on_device, parts.stream.resident, raw, jax.random.key(0))
    assert {n: batch[n].shape[1:] for n in parts.info.shapes} == {n: s.shape for n, s in parts.info.shapes.items()}


def test_a_table_replaces_the_one_before(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "HERE", tmp_path)
    (tmp_path / "README.md").write_text("a\n<!-- cpu -->\nold\n<!-- /cpu -->\nb\n")
    measure.into_readme("cpu", "new")
    measure.into_readme("cpu", "newer")
    assert (tmp_path / "README.md").read_text() == "a\n<!-- cpu -->\nnewer\n<!-- /cpu -->\nb\n"
