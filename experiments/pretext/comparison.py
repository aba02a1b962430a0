r"""Which pretext task: masked images, I-JEPA, data2vec, DINO, SimCLR and VICReg with one ViT and one budget, on Fashion-MNIST.

    ssl-jax sweep --experiment=experiments/pretext/comparison.py --workdir=runs/comparison

Every task trains the same encoder for the same number of model FLOPs, forward and backward, a teacher's passes included:
BUDGET divided by the FLOPs of a step. That does not depend on what else a machine does, as a time would; the times differ by
what is no matrix product, such as crops, and `timings.json` of each run holds them. Supervised training has the same budget
and all labels, the random encoder none of either. Evaluators read the teacher where a task has one.

Not run to its end yet: there is no result. One learning rate serves all tasks; none was chosen for a task by itself. A sweep
for each rate, such as this one, compares them on training images that are held out:

    ssl-jax sweep --experiment=experiments/pretext/comparison.py --experiment.seeds=1 --config.data.test=None
        --config.data.holdout=0.1 --config.optimizer.lr=1e-3 --config.optimizer.matrix_lr=0.01 --workdir=runs/comparison_0.01
"""

from ssl_jax.experiments import Arm

BUDGET = 4e12  # FLOPs of a run
CROPS = dict(crop=dict(scale=(0.3, 1.0)), jitter=dict(brightness=0.4, contrast=0.4, prob=0.8))
SMALL = dict(crop=dict(scale=(0.1, 0.4)), jitter=dict(brightness=0.4, contrast=0.4, prob=0.8))
PAIR = {"data.views": dict(pair=dict(count=2, augment=CROPS))}
CROPS_OF_DINO = dict(globals=dict(count=2, augment=CROPS), locals=dict(count=4, image_size=14, augment=SMALL))


def steps(gflops: float) -> dict[str, str]:
    """Return the length of a run whose steps take so many GFLOPs each."""
    return {"training.duration": f"{round(BUDGET / gflops / 1e9, -1):.0f} steps"}


def teacher(start: float, end: float) -> dict:
    return {"schedules": dict(ema=dict(start=start, end=end))}


def get_experiment() -> dict:
    return dict(
        config="base.py",
        arms=(
            Arm("masked image", steps(1.727)),
            Arm(
                "I-JEPA",
                {"task": dict(name="ijepa", predictor=dict(width=48, depth=2, heads=4))} | teacher(0.98, 1.0) | steps(5.805),
            ),
            Arm(
                "data2vec",
                {"task": dict(name="data2vec_image", targets=dict(top_blocks=2))} | teacher(0.98, 0.999) | steps(5.664),
            ),
            Arm(
                "DINO",
                {
                    "task": dict(name="self_distillation", prototypes=512, hidden=256, bottleneck=64),
                    "data.views": CROPS_OF_DINO,
                    "optimizer.clip": 3.0,
                }
                | teacher(0.96, 1.0)
                | steps(16.204),
            ),
            Arm("SimCLR", {"task": dict(name="joint_embedding", temperature=0.2, hidden=(256,))} | PAIR | steps(8.584)),
            Arm(
                "VICReg",
                {"task": dict(name="joint_embedding", loss="vicreg", hidden=(256,), outputs=256)} | PAIR | steps(8.634),
            ),
            Arm("supervised, all labels", {"task": dict(name="classification")} | steps(4.249)),
            Arm("random encoder", {"training.duration": "1 steps", "optimizer.rules": dict(freeze=((".*", True),))}),
        ),
        default="masked image",
        columns={
            "linear_probe/accuracy": "linear probe",
            "knn/accuracy": "kNN",
            "few_shot/10-shot/accuracy": "10 labels a class",
            "label_efficiency/1%/finetune/mean": "fine-tuned, 600 labels",
        },
    )
