r"""MAE's training length (He et al. 2022, figure 7), on Fashion-MNIST.

    ssl-jax sweep --experiment=experiments/mae/training_length.py --workdir=runs/training_length

The paper, 100 to 1,600 epochs: accuracy rises with every doubling, and linear probing has not saturated at the end. As in the
paper, each length is a separate run with a complete schedule.
Here (results/training_length.md): every doubling from 1 to 8 epochs raises both accuracies.
"""

from ssl_jax.experiments import product


def get_experiment() -> dict:
    return dict(
        config="base.py",
        arms=product({"training.duration": [f"{n} epochs" for n in (1, 2, 4, 8)]}, names=("1 epoch", "2", "4", "8 epochs")),
        default="4",
        columns={"label_efficiency/1%/finetune/mean": "fine-tuned, 600 labels", "linear_probe/accuracy": "linear probe"},
        figure=dict(x="training.duration", log_x=True),
        published=dict(
            source="He et al. 2022, figure 7 (100, 200, 400 and 800 epochs), ViT-L on ImageNet-1K",
            columns={"label_efficiency/1%/finetune/mean": "fine-tuned", "linear_probe/accuracy": "linear"},
            rows={
                "1 epoch": (82.3, 57.3),
                "2": (83.3, 64.4),
                "4": (84.3, 69.7),
                "8 epochs": (84.9, 73.5),
            },
        ),
    )
