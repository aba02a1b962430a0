"""data2vec against float64 evaluations of its formula, on images and on text."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax.data import build
from ssl_jax.errors import UserError
from ssl_jax.pretext.data2vec import Data2VecImage, Data2VecText
from ssl_jax.randomness import example_keys, substream
from tests.keys import toy_key
from tests.pretext.latent_toys import batch_of, loss_of, parameters, task_of, teacher_gradient
from tests.task_examples import BYTES


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def expected(branches, top, hidden, head, places, beta, scale):
    """Baevski et al. 2022, section 3.3 and equation 1: `places` are (row, time) pairs of what is hidden."""
    y = np.mean([(x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) for x in branches[-top:]], axis=0)
    x = hidden
    if "layer0" in head:
        x = gelu(x @ head["layer0"]["kernel"] + head["layer0"]["bias"])
    f = x @ head["output"]["kernel"] + head["output"]["bias"]
    error = np.abs(y - f)
    error = np.where(error < beta, error**2 / (2 * beta), error - beta / 2).sum(-1) * scale
    return np.mean([error[place] for place in places])


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


@pytest.fixture(scope="module")
def image():
    task = task_of(Data2VecImage, model=dict(depth=3, width=16), targets=dict(top_blocks=2, beta=0.7))
    return task, parameters(task), parameters(task, 1), batch_of()


@pytest.mark.parametrize("shared", [True, False])
def test_the_loss_on_images_is_the_papers(image, shared):
    """Teacher: the student's embedding under the average's blocks (section 3.2), or the average wholly."""
    task, params, teacher, batch = image
    task = task_of(Data2VecImage, model=dict(depth=3, width=16), targets=dict(top_blocks=2, beta=0.7, shared_embedding=shared))
    loss, metrics = loss_of(task)(params, batch, jax.random.key(2), task.context(teacher))
    whose = {**params["encoder"], "stack": teacher["encoder"]["stack"]} if shared else teacher["encoder"]

    @jax.jit
    def run():
        hidden = task.mask(substream(example_keys(jax.random.key(2), batch["position"]), "mask"), task.encoder.grid).hidden
        tokens = task.encoder.apply({"params": params["encoder"]}, batch["image"], mask=hidden)[0]
        found = task.encoder.apply({"params": whose}, batch["image"], branches=True)[1]
        return hidden, tokens[:, 1:], [found[f"block{i:02d}/mlp"][:, 1:] for i in range(3)]

    hidden, tokens, branches = run()
    places = list(zip(*np.nonzero(np.asarray(hidden)), strict=True))
    assert float(metrics["weight"]) == len(places) == 6 * 10  # 60 % of 16, rounded up: 6 of 16 stay
    value = expected(float64(branches), 2, float64(tokens), float64(params["regression"]), places, 0.7, 16**-0.5)
    assert float(loss) == pytest.approx(value, rel=3e-5)


def test_the_teacher_gets_no_gradient_nor_does_the_target(image):
    task, params, teacher, batch = image
    assert teacher_gradient(task, params, teacher, batch) == 0.0


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join("the quick brown fox jumps over a lazy dog" for _ in range(60)))
    section = ConfigDict(dict(train=f"text:{path}", test=f"text:{path}", batch_size=4, block=24, tokenizer=BYTES,
                              packing="documents", documents="blank_line"))  # fmt: skip
    return build("sequences", section)


def test_the_loss_on_text_is_the_papers(text):
    sections = dict(
        task=dict(mask=dict(ratio=0.3, unit="token", replace=1.0, random=0.0), targets=dict(top_blocks=1, beta=0.5)),
        model=dict(width=16, depth=2, heads=2), training={}, data={},
    )  # fmt: skip
    task = Data2VecText.from_config(ConfigDict(sections), text.info)
    raw = text.rows(np.arange(4))
    batch = {name: jnp.asarray(value) for name, value in text.on_device(raw, None).items()} | {"position": jnp.arange(4)}
    params, teacher = (jax.jit(task.init)(toy_key(i), batch) for i in (0, 1))
    loss, _ = loss_of(task)(params, batch, jax.random.key(2), task.context(teacher))

    @jax.jit
    def run():
        masked = task.masked(batch, jax.random.key(2))
        inputs = {k: batch[k] for k in ("segments", "positions") if k in batch}
        whose = {**params["transformer"], "stack": teacher["transformer"]["stack"]}
        hidden = task.model.apply({"params": params["transformer"]}, masked.tokens, **inputs)[0]
        branches = task.model.apply({"params": whose}, batch["tokens"], branches=True, **inputs)[1]
        return masked, hidden, [branches[f"block{i:02d}/mlp"] for i in range(2)]

    masked, hidden, branches = run()
    real = np.asarray(masked.real) > 0
    places = [(b, t) for b in range(4) for t in np.asarray(masked.places)[b][real[b]]]
    assert (np.asarray(masked.tokens)[tuple(np.transpose(places))] == text.info.tokenizer.mask_id).all()
    value = expected(float64(branches), 1, float64(hidden), float64(params["regression"]), places, 0.5, 1.0)
    assert float(loss) == pytest.approx(value, rel=3e-5)
    features = jax.jit(task.features)(params, batch)
    assert features["mean"].shape == (4, 16) and "block00/mean" in features
    assert teacher_gradient(task, params, teacher, batch) == 0.0


def test_what_cannot_be_is_refused_in_one_line(text):
    with pytest.raises(UserError, match=r"task.targets.top_blocks=6: must be at most model.depth=1"):
        task_of(Data2VecImage)
    with pytest.raises(UserError, match=r"task.targets.beta=0.0"):
        task_of(Data2VecImage, targets=dict(beta=0.0))
    sections = dict(task={}, model=dict(width=16, depth=2, heads=2), training={}, data={})
    with pytest.raises(UserError, match=r"task.targets.top_blocks=10: must be at most model.depth=2"):
        Data2VecText.from_config(ConfigDict(sections), text.info)
