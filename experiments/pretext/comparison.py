r"""Comparison of masked images, I-JEPA, data2vec, DINO, SimCLR and VICReg with one ViT and one budget, on Fashion-MNIST.

    ssl-jax sweep --experiment=experiments/pretext/comparison.py --workdir=runs/comparison

Every task trains the same encoder for the same number of model FLOPs, forward and backward, including a teacher's passes:
BUDGET divided by the FLOPs of a step gives the steps. Unlike time, FLOPs do not depend on the machine's other work; the times
differ by operations other than matmuls, such as crops, and are in the report's table of costs. Supervised training has the same
budget and all labels, the random encoder neither; `results.json` of the latter has the raw pixels' scores. Evaluators use the
teacher if a task has one.

Each task has the learning rate that learning_rate.py in this folder found best on held-out training images. Schedules, loss
settings and crops are single guesses, not tuned, except SimCLR's temperature (0.1 of 0.1, 0.2 and 0.5, on the same
images). So this compares six untuned methods at a length of half a minute on two cores, none of them at its best.
"""

from ssl_jax.experiments import Arm

BUDGET = 8e12  # FLOPs of a run
RATES = {"data2vec": 0.005}  # Muon's, for matrices; 0.02 for other tasks; other parameters: a tenth
CROPS = dict(crop=dict(scale=(0.3, 1.0)), jitter=dict(brightness=0.4, contrast=0.4, prob=0.8))
SMALL = dict(crop=dict(scale=(0.1, 0.4)), jitter=dict(brightness=0.4, contrast=0.4, prob=0.8))
PAIR = {"data.views": dict(pair=dict(count=2, augment=CROPS))}
CROPS_OF_DINO = dict(globals=dict(count=2, augment=CROPS), locals=dict(count=4, image_size=14, augment=SMALL))
TASKS = {  # name -> (FLOPs of a step in 10^9, settings of the arm)
    "masked image": (1.727, {}),
    "I-JEPA": (
        5.805,
        {
            "task": dict(name="ijepa", predictor=dict(width=48, depth=2, heads=4)),
            "schedules": dict(ema=dict(start=0.98, end=1.0)),
        },
    ),
    "data2vec": (
        5.664,
        {"task": dict(name="data2vec_image", targets=dict(top_blocks=2)), "schedules": dict(ema=dict(start=0.98, end=0.999))},
    ),
    "DINO": (
        16.204,
        {
            "task": dict(name="self_distillation", prototypes=512, hidden=256, bottleneck=64),
            "data.views": CROPS_OF_DINO,
            "optimizer.clip": 3.0,
            "schedules": dict(ema=dict(start=0.96, end=1.0)),
        },
    ),
    "SimCLR": (8.584, {"task": dict(name="joint_embedding", temperature=0.1, hidden=(256,))} | PAIR),
    "VICReg": (8.634, {"task": dict(name="joint_embedding", loss="vicreg", hidden=(256,), outputs=256)} | PAIR),
    "supervised, all labels": (4.249, {"task": dict(name="classification")}),
}


def arm(task: str, budget: float, rate: float, name: str | None = None) -> Arm:
    """Return the arm that trains `task` for `budget` FLOPs at the learning rate `rate`."""
    gflops, values = TASKS[task]
    length = {"training.duration": f"{round(budget / gflops / 1e9, -1):.0f} steps"}
    return Arm(name or task, values | length | {"optimizer.matrix_lr": rate, "optimizer.lr": rate / 10})


def get_experiment() -> dict:
    untrained = {"training.duration": "1 steps", "optimizer.rules": dict(freeze=((".*", True),))}
    untrained |= {f"downstream.{name}.baselines": True for name in ("linear_probe", "knn", "few_shot")}  # raw pixels
    return dict(
        config="base.py",
        arms=(*(arm(task, BUDGET, RATES.get(task, 0.02)) for task in TASKS), Arm("random encoder", untrained)),
        default="masked image",
        columns={
            "linear_probe/accuracy": "linear probe",
            "knn/accuracy": "kNN",
            "knn:tokens/accuracy": "kNN, all tokens",
            "few_shot/10-shot/accuracy": "10 labels per class",
            "label_efficiency/1%/finetune/mean": "fine-tuned, 600 labels",
        },
    )
