r"""BERT-base as published (Devlin et al. 2019; google-research/bert: create_pretraining_data.py, optimization.py).

12 post-norm layers of width 768, GELU, tied output layer with dense + norm before it; masked token (15 %, 80/10/10, masks
drawn once for each of 10 duplicates) and next-sentence prediction; AdamW 1e-4 (0.9, 0.999, eps 1e-6) without bias correction,
weight decay 0.01 except on norms and biases, clip 1.0, warm-up 10,000 steps, linear to 0, dropout 0.1, batch 256, 1 M steps.
The first 90 % run at length 128 (argument `128`, the default), the rest at 512 (argument `512`, from the first run's weights).
GLUE of the published weights: 80.9 on average.

    ssl-jax run --config=configs/bert/bert_base.py --config.data.train='text:wiki_books/*.txt' \
        --config.data.tokenizer.path=vocab.txt --workdir=runs/bert_base

Text: one sentence per line, a blank line between documents. Not run here: it needs 16 TPU chips for four days.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "128") -> ConfigDict:
    length = int(arg)
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="text:*.txt", holdout=0.001, block=length, batch_size=256, packing="pairs", documents="blank_line",
        short_sequences=0.1, duplicates=10, tokenizer=dict(name="bert", path="vocab.txt"),
    )  # fmt: skip
    config.task = dict(
        name="masked_token", mask=dict(ratio=0.15, maximum=20 if length == 128 else 77, static=True), next_sentence=True
    )
    config.model = dict(
        name="transformer", width=768, depth=12, heads=12, context_length=512, norm_position="post", norm_eps=1e-12,
        embedding_norm=True, final_norm=False, token_types=2, head_transform=True, output_bias=True, pooler=True, dropout=0.1,
        attention_dropout=0.1, init="trunc_normal",
    )  # fmt: skip
    config.training = dict(duration="900_000 steps" if length == 128 else "100_000 steps", dtype="bfloat16", log_every=100)
    config.optimizer = dict(
        name="adamw", lr=1e-4, b1=0.9, b2=0.999, eps=1e-6, bias_correction=False, weight_decay=0.01, clip=1.0,
        schedule="warmup_linear", warmup="10_000 steps",
    )  # fmt: skip
    config.optimizer.rules = dict(weight_decay=((r".*(scale|bias)$", 0.0), (".*", 1.0)))
    config.checkpoint = dict(every=10_000)
    config.downstream = dict(masked_token=dict())
    return config
