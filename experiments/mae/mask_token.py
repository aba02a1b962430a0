r"""Mask tokens in the encoder or only in the decoder (He et al. 2022, table 1c), on Fashion-MNIST.

    ssl-jax sweep --experiment=experiments/mae/mask_token.py --workdir=runs/mask_token

The paper: an encoder that sees mask tokens loses 14 points of linear probing, since it never sees a whole image in training,
and needs 3.3 times the FLOPs. The report's table of costs has the measured time of a step.
Here (results/mask_token.md): a step takes 1.96 times as long, and three seeds show no loss of accuracy.
"""

from ssl_jax.experiments import Arm


def get_experiment() -> dict:
    return dict(
        config="base.py",
        arms=(
            Arm("without [M]"),
            Arm("with [M]", {"task.mask_tokens_in_encoder": True}),
        ),
        default="without [M]",
        columns={"label_efficiency/1%/finetune/mean": "fine-tuned, 600 labels", "linear_probe/accuracy": "linear probe"},
        published=dict(
            source="He et al. 2022, table 1c, ViT-L on ImageNet-1K",
            columns={"label_efficiency/1%/finetune/mean": "fine-tuned", "linear_probe/accuracy": "linear"},
            rows={
                "without [M]": (84.9, 73.5),
                "with [M]": (84.2, 59.6),
            },
        ),
    )
