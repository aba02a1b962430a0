r"""The learning rate of each pretext task of comparison.py, chosen on held-out training images.

    ssl-jax sweep --experiment=experiments/pretext/learning_rate.py --workdir=runs/learning_rate

Half of the comparison's budget, one seed, 6,000 of the 60,000 training images held out. A task takes the rate with the best
mean of the two columns.
"""

import pathlib
import runpy

COMPARISON = runpy.run_path(str(pathlib.Path(__file__).with_name("comparison.py")))
BUDGET = COMPARISON["BUDGET"] / 2
RATES = (0.005, 0.02, 0.05)
TASKS = [task for task in COMPARISON["TASKS"] if "supervised" not in task]
BLOCKS = "block00/mean+block01/mean+mean"


def get_experiment() -> dict:
    evaluators = {
        "knn": dict(representation=BLOCKS, k=20, baselines=False),
        "knn:tokens": dict(representation="tokens", k=20, baselines=False),
    }
    common = {"data.test": None, "data.holdout": 0.1, "downstream": evaluators}
    arms = [COMPARISON["arm"](task, BUDGET, rate, f"{task} {rate}") for task in TASKS for rate in RATES]
    return dict(
        config="base.py",
        arms=tuple(type(arm)(arm.name, arm.values | common) for arm in arms),
        seeds=1,
        columns={"knn/accuracy": "kNN", "knn:tokens/accuracy": "kNN, all tokens"},
    )
