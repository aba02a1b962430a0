r"""Does pre-training on a task's own unlabelled text help? TREC, and 1 % and 10 % of SST-2, against random initialisation.

One small masked-token encoder is pre-trained on the sentences of both training splits (without labels and test splits) and then
fine-tuned; the same network is trained from scratch for the same steps. The learning rate of each arm is chosen on a
held-out tenth of TREC's training labels; then it runs with three seeds. Baselines: the majority class and a bag of tokens.

    python experiments/text/in_domain.py --trec_train=TREC.train --trec_test=TREC.test \
        --sst2_train=sst2_train.tsv --sst2_test=sst2_dev.tsv --to=runs/in_domain

About 20 minutes on a CPU core; `--part` runs one part (pretrain, trec, sst2_1, sst2_10). Results: in_domain.json.
"""

import argparse
import copy
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[2]), str(pathlib.Path(__file__).parent)]

from common import finetuned, save, show, statistics  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

MODEL = dict(
    name="transformer", width=128, depth=2, heads=4, init="xavier_uniform", positions="rope", embedding_norm=True,
    output_bias=True, head_transform=True, context_length=64,
)  # fmt: skip
TOKENIZER = dict(name="wordpiece", size=4096)
LEARNING_RATES = (3e-4, 1e-3)


def pretraining(corpus: str, steps: int) -> ConfigDict:
    """Return the config: BERT's masking, no dropout (Geiping & Goldstein 2023), configs/gpt/shakespeare_char_cpu_best.py's
    optimizer."""
    return ConfigDict(dict(
        seed=0, task=dict(name="masked_token"), model=MODEL,
        data=dict(train=f"text:{corpus}", documents="line", block=64, batch_size=32, holdout=0.02, tokenizer=TOKENIZER),
        training=dict(duration=f"{steps} steps", log_every=100),
        optimizer=dict(name="muon", lr=4e-3, matrix_lr=0.02, b1=0.9, b2=0.95, momentum=0.95, warmup="50 steps",
                       schedule="warmup_stable_decay", cooldown="70 %"),
    ))  # fmt: skip


def finetuning(data: dict, epochs: int, lr: float) -> dict:
    return dict(
        task=dict(name="text_classification", pooling="mean"), model=MODEL | dict(dropout=0.1),
        data=dict(batch_size=32) | data, training=dict(duration=f"{epochs} epochs", log_every=10_000),
        optimizer=dict(name="adamw", lr=lr, b2=0.98, eps=1e-6, weight_decay=0.01, clip=1.0, warmup="10 %",
                       schedule="warmup_linear"),
        downstream=dict(text_classification=dict()),
    )  # fmt: skip


def tasks(options) -> dict[str, tuple[dict, int]]:
    """Return name -> (the config's data section, epochs)."""
    trec = dict(train=f"trec:{options.trec_train}", test=f"trec:{options.trec_test}", max_length=24)
    sst2 = dict(train=f"tsv:{options.sst2_train}", test=f"tsv:{options.sst2_test}", max_length=48,
                columns=dict(text="sentence"), test_columns=dict(text=options.sst2_test_column))  # fmt: skip
    return {
        "trec": (trec, 5),
        "sst2_1": (sst2 | dict(fraction=0.01), 16),
        "sst2_10": (sst2 | dict(fraction=0.1), 3),
    }


def write_corpus(options, path: pathlib.Path) -> None:
    """Write all sentences of both training splits, one per line, without labels."""
    from ssl_jax.data.sources.text_columns import read_table

    lines = []
    for uri, column in ((f"trec:{options.trec_train}", "text"), (f"tsv:{options.sst2_train}", "sentence")):
        lines += read_table(uri, {"text": column}).columns["text"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(line.strip() for line in lines) + "\n", encoding="utf-8")


def best_rate(data: dict, epochs: int, init: str | None, memory: str, key: str) -> float:
    """Return the best learning rate on a held-out tenth of the training labels (TREC's, since SST-2's would be only 67)."""
    scores = {}
    for lr in LEARNING_RATES:
        config = finetuning(copy.deepcopy(data) | dict(held_out=0.1), epochs, lr)
        config["downstream"] = dict(text_classification=dict(bag_of_tokens=False))
        run = finetuned(config, (0,), init, memory, f"{key}/held out/lr {lr:g}")[0]
        scores[lr] = run["text_classification/accuracy"]
    return max(scores, key=scores.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("trec_train", "trec_test", "sst2_train", "sst2_test", "to"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sst2_test_column", default="content", help="the test file's column of sentences")
    parser.add_argument("--part", choices=("all", "pretrain", "trec", "sst2_1", "sst2_10"), default="all")
    parser.add_argument("--steps", type=int, default=1500, help="of pre-training")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    folder = pathlib.Path(options.to)
    encoder = str(folder / "encoder")
    if options.part in ("all", "pretrain"):
        from ssl_jax import runs

        corpus = folder / "corpus.txt"
        write_corpus(options, corpus)
        runs.pretrain(pretraining(str(corpus), options.steps), encoder)
    memory = f"{folder}/runs.json"
    # the same vocabulary in both arms: it is part of the network's input, not a result of pre-training
    vocabulary = dict(tokenizer=dict(name="file", path=f"{encoder}/tokenizer/tokenizer.json"))
    chosen = tasks(options)
    for name, (data, epochs) in chosen.items():
        if options.part not in ("all", name):
            continue
        arms = {}
        for arm, init in (("pre-trained", encoder), ("from scratch", None)):
            data, key = data | vocabulary, f"{name}/{arm}"
            lr = best_rate(chosen["trec"][0] | vocabulary, chosen["trec"][1], init, memory, f"trec/{arm}")
            config = finetuning(data, epochs, lr)
            config["downstream"] = dict(text_classification=dict(bag_of_tokens=init is not None))
            found = finetuned(config, range(options.seeds), init, memory, f"{key}/lr {lr:g}")
            arms[arm] = statistics(found) | {"lr": lr}
        save(str(folder / "in_domain.json"), name, arms)
        show(name, arms, "text_classification/accuracy")


if __name__ == "__main__":
    from ssl_jax.training.exceptions import Preempted

    try:
        main()
    except Preempted as stopped:
        sys.exit(str(stopped))
