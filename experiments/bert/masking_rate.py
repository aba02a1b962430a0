r"""How many tokens to hide (Wettig et al. 2023), on the bundled Shakespeare.

    ssl-jax sweep --experiment=experiments/bert/masking_rate.py --workdir=runs/masking_rate

The paper (arXiv:2202.08005): 15 % is not always the best rate; 40 % outperforms it for encoders of BERT-large's size after
fine-tuning on GLUE and SQuAD, and larger models prefer higher rates. Since losses at different rates cannot be compared, all
models are evaluated at the same two rates, 15 % and 40 %. The model is configs/bert/shakespeare_cpu.py at half its length.
Result (results/masking_rate.md), after 400 steps: the higher the training rate the better, at both rates of evaluation.
"""

from ssl_jax.experiments import product

RATES = (0.15, 0.30, 0.40, 0.50)


def get_experiment() -> dict:
    return dict(
        config="../../configs/bert/shakespeare_cpu.py",
        overrides={
            "training.duration": "400 steps",
            "optimizer.warmup": "12.5 %",
            "training.tensorboard": False,
            "checkpoint.keep": 1,
            "downstream": {"masked_token:15 %": dict(ratio=0.15), "masked_token:40 %": dict(ratio=0.40)},
            "expected": None,
        },
        arms=product({"task.mask.ratio": RATES}, names=[f"{rate:.0%}".replace("%", " %") for rate in RATES]),
        default="15 %",
        columns={
            "masked_token:15 %/loss": "loss, 15 % hidden",
            "masked_token:15 %/accuracy": "accuracy, 15 % hidden",
            "masked_token:40 %/loss": "loss, 40 % hidden",
        },
        figure=dict(x="task.mask.ratio"),
    )
