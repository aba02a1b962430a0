"""Text: tokenizers, corpora, packing into sequences, SQuAD, labelled and parallel text."""
