r"""The depth of MAE's decoder (He et al. 2022, table 1a), on Fashion-MNIST.

    ssl-jax sweep --experiment=experiments/mae/decoder_depth.py --workdir=runs/decoder_depth

The paper: linear probing gains 8 points from 1 block to 8, because the last layers of an autoencoder specialise in
reconstruction, and a deep decoder relieves the encoder of that; fine-tuning is not affected.
"""

from ssl_jax.experiments import product


def get_experiment() -> dict:
    return dict(
        config="base.py",
        arms=product({"task.decoder.depth": (1, 2, 4, 8)}, names=("1 block", "2 blocks", "4 blocks", "8 blocks")),
        default="1 block",
        columns={"label_efficiency/1%/finetune/mean": "fine-tuned, 600 labels", "linear_probe/accuracy": "linear probe"},
        figure=dict(x="task.decoder.depth", log_x=True),
        published=dict(
            source="He et al. 2022, table 1a, ViT-L on ImageNet-1K",
            columns={"label_efficiency/1%/finetune/mean": "fine-tuned", "linear_probe/accuracy": "linear"},
            rows={
                "1 block": (84.8, 65.5),
                "2 blocks": (84.9, 70.0),
                "4 blocks": (84.9, 71.9),
                "8 blocks": (84.9, 73.5),
            },
        ),
    )
