"""Training steps on one GPU in bfloat16 beside torch.compile with scaled-dot-product attention, on the same card.

    python experiments/throughput/gpu.py            # GPT-2 124M, MAE ViT-B and L, BERT-base, CLIP ViT-B; about 20 minutes
    python experiments/throughput/gpu.py --tiny     # the same script at a size that any CPU runs, to test it

Needs jax[cuda], and torch with CUDA and transformers for the peer (--no_peer without). Writes
experiments/throughput/gpu.json, with the device's name in every entry, and prints the table of README.md.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import measure  # noqa: E402
import shapes  # noqa: E402

if __name__ == "__main__":
    name = "tiny.json" if "--tiny" in sys.argv else "gpu.json"
    measure.main(__file__, shapes.gpu, pathlib.Path(__file__).with_name(name))
