r"""Learning rate x width of a GPT in standard parametrisation (Yang et al. 2022, figure 1), on the bundled Shakespeare.

    ssl-jax sweep --experiment=experiments/gpt/lr_width.py --workdir=runs/lr_width

The paper (arXiv:2203.03466): in standard parametrisation the best learning rate falls as the width grows, so that a rate tuned
on a small model is too high for a large one. The figure has a line for each width, which shows its best rate; the model is
configs/gpt/shakespeare_char_cpu.py at a fifth of its length.
"""

from ssl_jax.experiments import product


def get_experiment() -> dict:
    return dict(
        config="../../configs/gpt/shakespeare_char_cpu.py",
        overrides={
            "training.duration": "400 steps",
            "training.tensorboard": False,
            "training.ema": None,
            "optimizer.min_lr": None,
            "optimizer.warmup": "40 steps",
            "checkpoint.keep": 1,
        },
        arms=product({"model.width": (64, 128, 256)}, {"optimizer.lr": (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)}),
        default="width=128, lr=0.001",
        columns={"next_token/loss": "loss"},
        figure=dict(x="optimizer.lr", series="model.width", log_x=True),
    )
