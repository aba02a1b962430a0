r"""Extractive question answering on files in the SQuAD format (Rajpurkar et al. 2016, 2018).

    ssl-jax finetune --init=runs/bert --config=configs/downstream/squad.py --config.data.train=squad:train-v1.1.json \
        --config.data.test=squad:dev-v1.1.json --workdir=runs/squad

Recipe: Devlin et al. 2019, section 4.2, and their run_squad.py: batch 32, 3 epochs (here 2), windows of 384 tokens every 128.
Published, BERT-base on SQuAD 1.1 dev: 80.8 exact match, 88.5 F1 (table 2). Questions without an answer (SQuAD 2.0) are
recognised in the file. squad:FILE[:80%] and squad:FILE[80%:] split one file by article.

Arguments: "base" (the default), "minilm" (--init=hf:DIR, MiniLM-L6-H384) and "small" (minutes on two CPU cores).
"""

from ml_collections import ConfigDict

BERT = dict(
    name="transformer", norm_position="post", norm_eps=1e-12, init="normal", embedding_norm=True, final_norm=False,
    token_types=2, context_length=512, dropout=0.1, attention_dropout=0.1,
)  # fmt: skip
SIZES = {
    "small": dict(
        name="transformer", width=128, depth=4, heads=4, init="normal", dropout=0.1, embedding_norm=True, token_types=2
    ),
    "minilm": BERT | dict(width=384, depth=6, heads=12),
    "base": BERT | dict(width=768, depth=12, heads=12),
}


def get_config(size: str = "base") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="squad:train-v1.1.json", test="squad:dev-v1.1.json", batch_size=32)
    config.data.update(max_length=384, doc_stride=128, max_query_length=64)
    config.data.tokenizer = dict(name="wordpiece", size=8192)  # with --init, that run's own
    if size == "small":
        config.data.update(max_length=192, doc_stride=64, max_query_length=32)
    config.task = dict(name="question_answering")
    config.model = SIZES[size]
    config.training = dict(duration="3 epochs", dtype="float32" if size == "small" else "bfloat16")
    config.optimizer = dict(
        name="adamw", lr=5e-4 if size == "small" else 5e-5, b2=0.999, eps=1e-6, weight_decay=0.01, clip=1.0, warmup="10 %",
        schedule="warmup_linear", bias_correction=size == "small",
    )  # fmt: skip
    config.downstream = dict(question_answering=dict(n_best=20, max_answer_length=30))
    return config
