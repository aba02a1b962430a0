r"""Augmentation for MAE (He et al. 2022, table 1e), on Fashion-MNIST.

    ssl-jax sweep --experiment=experiments/mae/augmentation.py --workdir=runs/augmentation

The paper: cropping (with flips) suffices, no augmentation works too, and colour jitter harms. Since these images are grey,
jitter changes only brightness and contrast.
"""

from ssl_jax.experiments import Arm


def get_experiment() -> dict:
    return dict(
        config="base.py",
        arms=(
            Arm("none", {"data.augment": dict()}),
            Arm("crop, fixed size", {"data.augment": dict(crop=dict(padding=2), flip=True)}),
            Arm("crop, random size", {"data.augment": dict(crop=dict(scale=(0.2, 1.0)), flip=True)}),
            Arm(
                "crop, random size, jitter",
                {"data.augment": dict(crop=dict(scale=(0.2, 1.0)), flip=True, jitter=dict(saturation=0.0))},
            ),
        ),
        default="crop, random size",
        columns={"label_efficiency/1%/finetune/mean": "fine-tuned, 600 labels", "linear_probe/accuracy": "linear probe"},
        published=dict(
            source="He et al. 2022, table 1e, ViT-L on ImageNet-1K",
            columns={"label_efficiency/1%/finetune/mean": "fine-tuned", "linear_probe/accuracy": "linear"},
            rows={
                "none": (84.0, 65.7),
                "crop, fixed size": (84.7, 73.1),
                "crop, random size": (84.9, 73.5),
                "crop, random size, jitter": (84.3, 71.9),
            },
        ),
    )
