"""A published sentence encoder, MiniLM, on the same sentences in `transformers` and here.

The directory that holds it: $SSL_JAX_MINILM, or ~/.cache/ssl_jax_data/minilm. $SSL_JAX_SENTENCES may name SST-2's file of
sentences (a line of names, then label and sentence), of which 400 are taken.
"""

import os
import pathlib

import numpy as np

FOLDER = pathlib.Path(os.environ.get("SSL_JAX_MINILM", pathlib.Path.home() / ".cache/ssl_jax_data/minilm"))


SAID = [
    f"{who} {verb} {what}{end}"
    for who in ("the film", "this director", "a tired plot", "her voice", "the whole cast")
    for verb in ("delivers", "never reaches", "almost ruins")
    for what in ("a moving story", "the laughs it promises", "an hour of pure noise", "what the first part began")
    for end in ("", " , and that is all .", " ... again !")
]


def sentences() -> tuple[list[str], str]:
    """400 of SST-2's where they are, else the made ones; and what they are."""
    file = os.environ.get("SSL_JAX_SENTENCES")
    if file is None:
        return SAID, f"{len(SAID)} made sentences"
    lines = pathlib.Path(file).read_text().splitlines()[1:]
    found = sorted({line.split("\t")[-1].strip() for line in lines})[:400]
    return found, f"{len(found)} sentences of SST-2"


def measure(sentences: list[str]) -> tuple[float, int]:
    """(the largest difference of an embedding, how many sentences have another nearest neighbour)."""
    import torch
    import transformers

    import ssl_jax

    torch.set_num_threads(1)
    ours = ssl_jax.load(f"hf:{FOLDER}")
    rows = ours.info.tokenizer.encode_batch(sentences, special=True)
    length = max(map(len, rows))
    tokens, mask = np.zeros((2, len(rows), length), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, 1
    mine = ours.features({"text": sentences}, batch_size=64)["mean"]
    theirs = transformers.BertModel.from_pretrained(FOLDER).eval()
    with torch.no_grad():
        given = {"input_ids": torch.tensor(tokens, dtype=torch.long), "attention_mask": torch.tensor(mask, dtype=torch.long)}
        hidden = theirs(**given).last_hidden_state.numpy()
    reference = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (mine, reference))
    nearest = [np.argmax(x @ x.T - 2 * np.eye(len(x)), axis=1) for x in (a, b)]
    return float(np.abs(a - b).max()), int((nearest[0] != nearest[1]).sum())
