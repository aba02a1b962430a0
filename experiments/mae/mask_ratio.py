r"""The mask ratio of MAE (He et al. 2022, figure 5), on Fashion-MNIST.

    ssl-jax sweep --experiment=experiments/mae/mask_ratio.py --workdir=runs/mask_ratio

The paper, ViT-L on ImageNet-1K after 800 epochs: linear probing is best at 75 % and falls steeply on both sides; fine-tuning
hardly changes between 40 and 80 %. An image of 28 x 28 has 16 patches of 7 x 7 here, of which 4, 8, 10, 12, 14 or 15 are
hidden. Result (results/mask_ratio.md): linear probing falls above 75 % as in the paper, but does not differ from 25 to 75 %.
"""

from ssl_jax.experiments import product

HIDDEN = (4, 8, 10, 12, 14, 15)  # of 16 patches
RATIOS = (10, 20, 30, 40, 50, 60, 70, 75, 80, 90)  # per cent, of the paper's figure
FINETUNED = (83.2, 83.4, 83.4, 84.7, 84.9, 85.0, 84.9, 84.9, 84.5, 83.0)
LINEAR = (54.6, 58.9, 61.7, 67.0, 69.9, 71.8, 73.2, 73.5, 71.8, 66.1)


def get_experiment() -> dict:
    curve = lambda values: tuple((ratio / 100, value) for ratio, value in zip(RATIOS, values, strict=True))
    return dict(
        config="base.py",
        arms=product({"task.mask.ratio": [n / 16 for n in HIDDEN]}, names=[f"{100 * n / 16:g} %" for n in HIDDEN]),
        default="75 %",
        columns={"label_efficiency/1%/finetune/mean": "fine-tuned, 600 labels", "linear_probe/accuracy": "linear probe"},
        figure=dict(x="task.mask.ratio"),
        published=dict(
            source="He et al. 2022, figure 5, ViT-L on ImageNet-1K",
            columns={"label_efficiency/1%/finetune/mean": "fine-tuned", "linear_probe/accuracy": "linear"},
            rows={"50 %": (84.9, 69.9), "75 %": (84.9, 73.5)},
            curves={"label_efficiency/1%/finetune/mean": curve(FINETUNED), "linear_probe/accuracy": curve(LINEAR)},
        ),
    )
