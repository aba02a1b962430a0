r"""A small BERT on Shakespeare, for two CPU cores.

The encoder and masking of Devlin et al. 2019 (15 %, 80/10/10, a new mask each time) without next-sentence prediction, which Liu
et al. 2019 (RoBERTa) found best; pre-norm, as in Geiping and Goldstein 2023 (Cramming) for small budgets. WordPiece with 4,096
pieces, trained on the text. Muon and its settings are those of configs/gpt/shakespeare_char_cpu_best.py, not tuned here.

    ssl-jax run --config=configs/bert/shakespeare_cpu.py --workdir=runs/bert

One core of an AMD EPYC that other programs used at the same time: 5.5 min, seed 0. On the hidden tokens of the test split: loss
5.783 (token frequencies alone: 6.248), accuracy 0.149 (the most frequent token: 0.066). The loss is still falling at the end;
--config.training.duration="6000 steps" trains for longer.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="bundled:shakespeare/train", test="bundled:shakespeare/test", block=64, batch_size=32, stride=31,
        tokenizer=dict(name="wordpiece", size=4096),
    )  # fmt: skip
    config.task = dict(name="masked_token", mask=dict(ratio=0.15))
    config.model = dict(
        name="transformer", width=128, depth=4, heads=4, embedding_norm=True, head_transform=True, output_bias=True,
        init="normal",
    )  # fmt: skip
    config.training = dict(duration="800 steps", dtype="float32", log_every=100)
    config.optimizer = dict(
        name="muon", lr=4e-3, matrix_lr=0.02, b1=0.9, b2=0.95, momentum=0.95, weight_decay=0.0, schedule="warmup_stable_decay",
        warmup="50 steps", cooldown="70 %",
    )  # fmt: skip
    config.downstream = dict(masked_token=dict())
    config.expected = {"masked_token/loss": (5.6, 5.95), "masked_token/accuracy": (0.13, 0.17)}
    return config
