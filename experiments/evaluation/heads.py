"""Compare the cost of a grid of 39 linear heads with that of one head, and its result with that of 39 single runs.

    python experiments/evaluation/heads.py

On Fashion-MNIST, with the untrained encoder of configs/mae/fashion_mnist.py (training does not affect its speed):
13 learning rates x 3 weight decays, the 54,000 examples that are not held out, 10 epochs of batch 128.
"""

import pathlib
import time

import jax
import numpy as np

from ssl_jax import config, runs
from ssl_jax.data.pipeline import subset
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe, probe

ROOT = pathlib.Path(__file__).parents[2]
DECAYS = (0.0, 1e-4, 1e-3)


def grid(**options) -> LinearProbe:
    return LinearProbe(protocol="grid", baselines=False, **{"weight_decays": DECAYS, **options})


def seconds(run, repeats: int = 1) -> float:
    """Return the wall-clock seconds of the shortest of `repeats` runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parts = runs.prepare(config.load(str(ROOT / "configs/mae/fashion_mnist.py")))
    data = EvaluationData(*(parts.dataset(split, False) for split in ("train", "test")))
    params = jax.jit(parts.task.init)(jax.random.key(0), {"image": np.zeros((1, 28, 28, 1), np.float32)})
    encoder, many, one = Encoder(parts.task, params), grid(), grid(learning_rates=(1e-2,), weight_decays=(0.0,))
    encoder.extract(subset(data.train, np.arange(512)), ("mean",))  # compiles the pass
    features = seconds(lambda: [encoder.extract(split, ("mean",)) for split in (data.train, data.test)])
    for settings in (many, one):  # compiles the heads
        list(settings(encoder, data))
    ready = [seconds(lambda s=settings: list(s(encoder, data)), 3) for settings in (many, one)]

    def images_to_accuracy(settings):
        encoder.forget()
        list(settings(encoder, data))

    whole = [seconds(lambda s=settings: images_to_accuracy(s), 2) for settings in (many, one)]
    print(f"{'seconds':40}{'39 heads':>10}{'one head':>10}{'ratio':>8}")
    print(f"{'from images to accuracy':40}{whole[0]:10.2f}{whole[1]:10.2f}{whole[0] / whole[1]:8.2f}")
    print(f"{'from ready features to accuracy':40}{ready[0]:10.2f}{ready[1]:10.2f}{ready[0] / ready[1]:8.2f}")
    print(f"the pass over 70,000 images alone: {features:.2f} s", flush=True)

    x, labels = encoder.extract(data.train, ("mean",))["mean"], data.train.labels()
    ((score, chosen, _),) = probe([x], labels, 10, many)
    started, alone = time.perf_counter(), {}
    for lr, decay in many.descent.heads:
        alone[lr, decay] = probe([x], labels, 10, grid(learning_rates=(lr,), weight_decays=(decay,)))[0][0]
    took, best = time.perf_counter() - started, max(alone, key=alone.get)
    own = chosen["chosen/lr"], chosen["chosen/weight_decay"]
    print(f"39 single runs on ready features: {took:.1f} s, the best {best}: {alone[best]:.5f} of the held-out part")
    print(f"the grid's choice {own}: {score:.5f}; alone {alone[own]:.5f}")


if __name__ == "__main__":
    main()
