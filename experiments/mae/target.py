r"""MAE's reconstruction target (He et al. 2022, table 1d), on Fashion-MNIST.

    ssl-jax sweep --experiment=experiments/mae/target.py --workdir=runs/target

The paper: pixels normalised per patch are best, 96 principal components of the patches worst. A patch has 768 values in the
paper and 49 here, so that 6 components are the same share. Tokens of a dVAE are omitted, because they need another model.
Here (results/target.md): three seeds do not distinguish the targets; PCA is last in linear probing.
"""

from ssl_jax.experiments import Arm


def get_experiment() -> dict:
    return dict(
        config="base.py",
        arms=(
            Arm("pixels"),
            Arm("pixels, normalised", {"task.target": "normalized_pixels"}),
            Arm("PCA", {"task.target": "pca", "task.components": 6}),
        ),
        default="pixels",
        columns={"label_efficiency/1%/finetune/mean": "fine-tuned, 600 labels", "linear_probe/accuracy": "linear probe"},
        published=dict(
            source="He et al. 2022, table 1d, ViT-L on ImageNet-1K",
            columns={"label_efficiency/1%/finetune/mean": "fine-tuned", "linear_probe/accuracy": "linear"},
            rows={
                "pixels": (84.9, 73.5),
                "pixels, normalised": (85.4, 73.9),
                "PCA": (84.6, 72.3),
            },
        ),
    )
