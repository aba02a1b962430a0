"""Small tokenizers of the published kinds over a few words, made from nothing."""

import itertools

import tokenizers as t

from ssl_jax.data.text.tokenizer_files import byte_level_bpe, wordpiece
from ssl_jax.data.text.tokenizers import BERT_SPECIAL, FastTokenizer, byte_letters

WORDS = "the a cat dog sat ran on under mat hat red big small then was very happy".split()
LETTERS = sorted(set("".join(WORDS)))


def sentence(*numbers):
    return " ".join(WORDS[i % len(WORDS)] for i in numbers)


def metaspace(extra=(), post_processor=True, unigram=False, **files):
    """LLaMA's kind: "▁" before every word and before the text, <s> before a text."""
    special = ["<unk>", "<s>", "</s>", *extra]
    vocabulary, merges = dict.fromkeys([*special, "▁", *LETTERS]), []
    for word in WORDS:
        for stop in range(1, len(word) + 1):
            if "▁" + word[:stop] not in vocabulary:
                vocabulary["▁" + word[:stop]] = None
                merges.append(("▁" + word[: stop - 1], word[stop - 1]))
    ids = {token: i for i, token in enumerate(vocabulary)}
    if unigram:
        model = t.models.Unigram([(token, -float(len(ids) - 10 * len(token))) for token in ids], unk_id=0)
    else:
        model = t.models.BPE(vocab=ids, merges=merges, unk_token="<unk>")
    inner = t.Tokenizer(model)
    inner.normalizer = t.normalizers.Sequence([t.normalizers.Prepend("▁"), t.normalizers.Replace(" ", "▁")])
    inner.decoder = t.decoders.Metaspace()
    inner.add_special_tokens(special)
    if post_processor:
        inner.post_processor = t.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    return FastTokenizer(inner, files)


def byte_level(special=(), prefix=None, **files):
    """GPT-2's kind, with `special` tokens first; `prefix`: one of them is put before a text, as LLaMA-3's tokenizer does."""
    tokens = [*special, *byte_letters().values(), *("Ġ" + word[:1] for word in WORDS), *("Ġ" + word[:2] for word in WORDS)]
    tokens = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    merges = list(dict.fromkeys(("Ġ", word[:1]) for word in WORDS))
    merges += list(dict.fromkeys(("Ġ" + word[:1], word[1:2]) for word in WORDS if len(word) > 1))
    made = byte_level_bpe(tokens, merges, special)
    if prefix is not None:
        processors = [
            t.processors.ByteLevel(trim_offsets=False),
            t.processors.TemplateProcessing(single=f"{prefix} $A", special_tokens=[(prefix, tokens[prefix])]),
        ]
        made.inner.post_processor = t.processors.Sequence(processors)
    return FastTokenizer(made.inner, files)


def llama3(**files):
    return byte_level(("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"), prefix="<|begin_of_text|>", **files)


def roberta():
    return byte_level(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))


def gpt2(**files):
    return byte_level(("<|endoftext|>",), **files)


def bert(lowercase=True):
    return wordpiece({token: i for i, token in enumerate(bert_vocabulary())}, lowercase)


def bert_vocabulary():
    return list(dict.fromkeys([*BERT_SPECIAL, *WORDS, *LETTERS, ".", *("##" + letter for letter in LETTERS)]))


KINDS = {"metaspace": metaspace, "llama3": llama3, "roberta": roberta, "gpt2": gpt2, "bert": bert}
SENTENCES = [sentence(*itertools.islice(itertools.count(i, 3), 4 + i % 3)) for i in range(12)]
