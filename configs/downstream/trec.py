r"""Question classification: TREC (Li & Roth 2002), six coarse classes, 5,452 and 500 questions.

    ssl-jax run --config=configs/downstream/trec.py --config.data.train=trec:TREC.train --config.data.test=trec:TREC.test \
        --workdir=runs/trec                                                                 # from random initialisation
    ssl-jax finetune --init=runs/bert --config=... --workdir=runs/trec_bert                 # from a masked-token run

With --init, `model` must be that of the initial run, whose vocabulary is used. Arguments: "small" (the default,
minutes on two CPU cores), "minilm" (--init=hf:DIR, MiniLM-L6-H384) and "base" (BERT-base; Devlin et al. 2019, appendix A.3).
"""

from ml_collections import ConfigDict

BERT = dict(
    name="transformer", norm_position="post", norm_eps=1e-12, init="normal", embedding_norm=True, final_norm=False,
    token_types=2, context_length=512, dropout=0.1, attention_dropout=0.1,
)  # fmt: skip
SIZES = {
    "small": dict(name="transformer", width=128, depth=4, heads=4, init="normal", dropout=0.1, embedding_norm=True),
    "minilm": BERT | dict(width=384, depth=6, heads=12),
    "base": BERT | dict(width=768, depth=12, heads=12),
}


def get_config(size: str = "small") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="trec:TREC.train", test="trec:TREC.test", batch_size=32, max_length=32)
    config.data.tokenizer = dict(name="wordpiece", size=8192)  # trained on the questions; with --init, that run's
    config.task = dict(name="text_classification", pooling="mean" if size != "base" else "cls", dropout=0.1)
    config.model = SIZES[size]
    config.training = dict(duration="10 epochs" if size == "small" else "4 epochs", dtype="float32")
    config.optimizer = dict(
        name="adamw", lr=1e-3 if size == "small" else 5e-5, b2=0.98, eps=1e-6, weight_decay=0.01, clip=1.0, warmup="10 %",
        schedule="warmup_linear",
    )  # fmt: skip
    config.downstream = dict(text_classification=dict())
    return config
