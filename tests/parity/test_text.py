"""Scores, generated texts and token ids of whole model directories, against transformers reading the same directory."""

import json
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import ssl_jax  # noqa: E402
from ssl_jax import inference  # noqa: E402
from ssl_jax.data.text.tokenizers import Tokenizer  # noqa: E402
from ssl_jax.downstream.evaluator import EvaluationData  # noqa: E402
from ssl_jax.downstream.evaluators.features import Encoder  # noqa: E402
from ssl_jax.downstream.evaluators.language_modelling import Lambada, Perplexity  # noqa: E402
from ssl_jax.reports.records import flat  # noqa: E402
from tests import tokenizer_toys as toys  # noqa: E402
from tests.downstream.test_scoring import Data, lines  # noqa: E402
from tests.parity.reference import randomise  # noqa: E402

pytestmark = pytest.mark.parity

SHAPE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=64)


def llama(tokenizer, end):
    return transformers.LlamaConfig(
        vocab_size=tokenizer.size, bos_token_id=tokenizer.bos_id, eos_token_id=end, tie_word_embeddings=False, **SHAPE
    )


@pytest.fixture(params=["metaspace", "llama3", "gpt2"])
def directory(request, tmp_path):
    """(a causal model's directory, the reference's model and tokenizer)."""
    tokenizer = toys.KINDS[request.param]()
    if request.param == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=tokenizer.size, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    else:
        config = llama(tokenizer, [1, 2] if request.param == "llama3" else 2)
    cls = transformers.GPT2LMHeadModel if request.param == "gpt2" else transformers.LlamaForCausalLM
    model = randomise(cls(config), 3).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    return tmp_path, model, transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))


def losses(model, ids):
    """-log p of each token but the first."""
    with torch.no_grad():
        log_p = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return [-float(log_p[i, token]) for i, token in enumerate(ids[1:])]


def evaluator_data(directory):
    model = ssl_jax.load(f"hf:{directory}")
    return Encoder(model.task, model.params), EvaluationData(Data(model.info), Data(model.info))


def test_perplexity(directory, tmp_path_factory):
    """Each document behind the tokenizer's begin-of-text; GPT-2's end-of-text stands for it, as in the evaluation harness."""
    folder, model, tokenizer = directory
    begin = [] if tokenizer("a").input_ids != tokenizer("a", add_special_tokens=False).input_ids else [0]
    expected = [loss for text in toys.SENTENCES for loss in losses(model, begin + tokenizer(text).input_ids)]
    uri = lines(tmp_path_factory.mktemp("texts") / "a.jsonl", toys.SENTENCES)
    found = flat(Perplexity(text=uri)(*evaluator_data(folder)))
    np.testing.assert_allclose(found["token"], math.exp(np.mean(expected)), rtol=1e-4)


def test_lambada(directory, tmp_path_factory):
    """The whole encoded and cut behind the context's tokens, as the evaluation harness does."""
    folder, model, tokenizer = directory
    expected = []
    for text in toys.SENTENCES:
        whole, context = tokenizer(text).input_ids, tokenizer(text.rpartition(" ")[0]).input_ids
        expected.append(sum(losses(model, whole)[len(context) - 1 :]))
    uri = lines(tmp_path_factory.mktemp("texts") / "a.jsonl", toys.SENTENCES)
    found = flat(Lambada(text=uri)(*evaluator_data(folder)))
    np.testing.assert_allclose(found["perplexity"], math.exp(np.mean(expected)), rtol=1e-4)


@pytest.mark.parametrize("prompt", ["the cat", ""])
def test_greedy_generation(directory, prompt, capsys):
    """Text for text, from the beginning of a text where there is no prompt, up to any of the model's end tokens."""
    folder, model, tokenizer = directory
    given = torch.tensor([tokenizer(prompt).input_ids]) if prompt else None
    out = model.generate(given, max_new_tokens=30, do_sample=False, pad_token_id=model.config.vocab_size - 1)[0].tolist()
    out = out[given.shape[1] if prompt else 1 :]
    stop = model.generation_config.eos_token_id
    stop = stop if isinstance(stop, list) else [stop]
    out = out[: next((i for i, token in enumerate(out) if token in stop), len(out))]
    inference.generate(
        f"hf:{folder}", prompt=prompt, max_tokens=30, temperature=0.0, top_k=None, top_p=None, num_samples=1, seed=0
    )
    ours = Tokenizer.load(folder)
    start = [*ours.prefix_ids, *ours.encode(prompt)] if prompt else list(ours.begin_ids)
    expected = prompt + ours.decode([*start, *out]).removeprefix(ours.decode(start))
    assert capsys.readouterr().out == expected + "\n"


TEXTS = [*toys.SENTENCES, "", " the  cat", "the <mask> sat", "naïve café 中文", "x" * 150]


def test_robertas_vocabulary_and_merges(tmp_path):
    """vocab.json and merges.txt alone: single texts, pairs, and the mask, which takes the space before it."""
    tokenizer = toys.roberta()
    merges = json.loads(tokenizer.inner.to_str())["model"]["merges"]
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer.vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n")
    mask = transformers.AddedToken("<mask>", lstrip=True)  # as in roberta-base's own files
    theirs = transformers.RobertaTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), mask_token=mask)
    ours = Tokenizer.load(tmp_path)
    for text in TEXTS:
        assert ours.encode(text, special=True) == theirs(text).input_ids, text
        assert ours.encode_pair(text, "a cat")[0] == theirs(text, "a cat").input_ids, text


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"strip_accents": False}])
def test_berts_vocabulary(tmp_path, settings):
    (tmp_path / "vocab.txt").write_text("\n".join(toys.bert_vocabulary()) + "\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **settings}))
    theirs = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"), **settings)
    ours = Tokenizer.load(tmp_path)
    for text in [*TEXTS, "The Café"]:
        assert ours.encode(text, special=True) == theirs(text).input_ids, text


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("length", [7, 12, 40])
def test_long_texts_and_pairs_are_cut_as_the_reference_cuts_them(tmp_path, kind, length):
    from ssl_jax.data.text.encoding import encode_sentences

    tokenizer = toys.KINDS[kind]()
    tokenizer.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for a in toys.SENTENCES:
        tokens, _, n, _ = encode_sentences(tokenizer, [a], None, length)
        assert tokens[0, : n[0]].tolist() == theirs(a, truncation=True, max_length=length).input_ids
        b = "happy dog on a mat"
        tokens, _, n, _ = encode_sentences(tokenizer, [a], [b], length)
        expected = theirs(a, b, truncation="longest_first", max_length=length).input_ids
        assert n[0] == len(expected)
        if length == 40:
            assert tokens[0, : n[0]].tolist() == expected
