r"""Does initialising the image tower from a masked autoencoder beat random initialisation? CLIP on emoji, over seeds.

For each seed a masked autoencoder is trained on the training pictures (configs/clip/emoji_mae.py). Then two runs of
configs/clip/emoji_cpu.py with the same batches, captions and text tower start their image tower from it or at random.

    python experiments/image_text/from_mae.py --workdir=runs/from_mae --to=experiments/image_text/from_mae.json

A stopped experiment resumes. The table is printed and written to the JSON file with every run's values. Results for three
seeds: experiments/image_text/README.md.
"""

import argparse
import json
import pathlib
import platform
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

import jax  # noqa: E402

from ssl_jax import config as configs  # noqa: E402
from ssl_jax import runs  # noqa: E402

ARMS = ("random", "mae")
METRICS = tuple(f"retrieval/{way}/R@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)) + (
    "retrieval/text_to_image/median_rank", "retrieval/image_to_text/median_rank", "zero_shot/accuracy",
)  # fmt: skip
BESIDE = {"zero_shot/accuracy": "zero_shot/majority/accuracy"}


def load(name: str, seed: int, duration: str | None):
    """Return a config of configs/clip with the seed and length, without probes and TensorBoard."""
    config = configs.load(str(ROOT / f"configs/clip/{name}.py"))
    with config.unlocked():
        config.seed, config.training.tensorboard, config.expected = seed, False, {}
        config.training.duration = duration or config.training.duration
        config.downstream = {key: value for key, value in config.downstream.items() if key in ("retrieval", "zero_shot")}
    return config


def autoencoder(options, seed: int) -> str:
    """Return the work directory of the seed's masked autoencoder; train it if it does not exist."""
    workdir = f"{options.workdir}/autoencoder_{seed}"
    runs.pretrain(load("emoji_mae", seed, options.mae_duration), workdir)
    return workdir


def run(options, arm: str, seed: int) -> dict[str, float]:
    """Return the results of one contrastive run."""
    config = load("emoji_cpu", seed, options.duration)
    if arm == "mae":
        with config.unlocked():
            config.task.init = dict(image=autoencoder(options, seed))
    workdir, started = pathlib.Path(f"{options.workdir}/{arm}_{seed}"), time.monotonic()
    runs.run(config, str(workdir))
    print(f"{workdir}: {time.monotonic() - started:.0f} s", flush=True)
    return json.loads((workdir / "results.json").read_text())


def statistics(values: list[float]) -> dict[str, float | list[float]]:
    """Return mean and standard deviation (n - 1)."""
    return {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, "values": values}


def table(found: dict[str, dict]) -> str:
    """Return a Markdown table: each metric by arm, the paired difference, and the value of chance or the majority class."""
    lines = ["| | random | masked autoencoder | difference | chance |", "|---|---:|---:|---:|---:|"]
    cell = lambda s, sign="": f"{s['mean']:{sign}.3g} ± {s['sd']:.2g}"
    for name in METRICS:
        row = found["metrics"][name]
        lines.append(
            f"| {name} | {cell(row['random'])} | {cell(row['mae'])} | {cell(row['difference'], '+')} | {row['chance']:.3g} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="runs/from_mae")
    parser.add_argument("--to", default=str(pathlib.Path(__file__).with_suffix(".json")))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--duration", default="20 epochs", help="of a contrastive run")
    parser.add_argument("--mae_duration", default=None, help="of an autoencoder; default: its config's")
    options = parser.parse_args()
    results = {arm: [] for arm in ARMS}
    for seed in options.seeds:
        for arm in ARMS:
            results[arm].append(run(options, arm, seed))
    metrics = {}
    for name in METRICS:
        values = {arm: [r[name] for r in results[arm]] for arm in ARMS}
        difference = [b - a for a, b in zip(values["random"], values["mae"], strict=True)]
        chance = results["random"][0][BESIDE.get(name, name.replace("retrieval/", "retrieval/chance/"))]
        metrics[name] = {arm: statistics(values[arm]) for arm in ARMS} | {
            "difference": statistics(difference), "chance": chance
        }  # fmt: skip
    found = {
        "seeds": options.seeds, "duration": options.duration, "autoencoder": options.mae_duration or "as its config",
        "machine": f"{platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}", "metrics": metrics,
    }  # fmt: skip
    found["table"] = table(found).splitlines()
    pathlib.Path(options.to).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
