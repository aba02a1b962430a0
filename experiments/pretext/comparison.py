r"""Which pretext task: masked images, I-JEPA, data2vec, DINO, SimCLR and VICReg with one ViT and one budget, on Fashion-MNIST.

    ssl-jax sweep --experiment=experiments/pretext/comparison.py --workdir=runs/comparison

Every task trains the same encoder for the same number of model FLOPs, forward and backward, a teacher's passes included:
BUDGET divided by the FLOPs of a step. That does not depend on what else a machine does, as a time would; the times differ by
what is no matrix product, such as crops, and the page's table of costs has them. Supervised training has the same budget and
all labels, the random encoder none of either; `results.json` of the latter has the raw pixels' scores. Evaluators read the
teacher where a task has one.

Each task has the learning rate that learning_rate.py beside this file found best on training images held out. Schedules, the
loss's settings and the crops are one guess each, not tuned, except SimCLR's temperature (0.1 of 0.1, 0.2 and 0.5, on the same
images). So this compares six methods as they come, at the length of half a minute on two cores, and none at its best.
"""

from ssl_jax.experiments import Arm

BUDGET = 8e12  # FLOPs of a run
RATES = {"data2vec": 0.005}  # of the matrices (Muon), elsewhere 0.02; the other parameters' is a tenth
CROPS = dict(crop=dict(scale=(0.3, 1.0)), jitter=dict(brightness=0.4, contrast=0.4, prob=0.8))
SMALL = dict(crop=dict(scale=(0.1, 0.4)), jitter=dict(brightness=0.4, contrast=0.4, prob=0.8))
PAIR = {"data.views": dict(pair=dict(count=2, augment=CROPS))}
CROPS_OF_DINO = dict(globals=dict(count=2, augment=CROPS), locals=dict(count=4, image_size=14, augment=SMALL))
TASKS = {  # by name: the FLOPs of a step in 10^9, and what the arm sets
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
            "few_shot/10-shot/accuracy": "10 labels a class",
            "label_efficiency/1%/finetune/mean": "fine-tuned, 600 labels",
        },
    )
