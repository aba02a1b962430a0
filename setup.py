"""ssl_jax: self-supervised learning in JAX, from unlabelled data to a measured representation."""

import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "ssl_jax/__init__.py").read_text()).group(1)

setup(
    name="ssl_jax",
    version=VERSION,
    description="Self-supervised learning in JAX, from unlabelled data to a measured representation",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["ssl_jax", "ssl_jax.*"]),
    package_data={"ssl_jax": ["data/bundled/**", "reports/*.css", "reports/*.html"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.28",
        "grain>=0.2.13",
        "tensorflow-datasets>=4.9.8",
        "array_record>=0.8.1",
        "ml-collections>=1.0",
        "jaxtyping>=0.3",
        "numpy>=2.0.2",
        "pillow>=10.3",
        "rich>=13",
        "matplotlib>=3.9",
        "scipy>=1.13",
        "tokenizers>=0.21",
        "safetensors>=0.4.5",
        "sacrebleu>=2.4",
        "tensorboardX>=2.6.2.2",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "beartype>=0.20",
            "scikit-learn>=1.5",
            "ruff>=0.14",
            "pyrefly>=1.4",
            "pyarrow>=16",
        ],  # fmt: skip
        "parity": ["torch==2.13.0", "transformers>=5"],
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "tfds": ["tensorflow", "importlib_resources"],
        "parquet": ["pyarrow>=16"],
        "wandb": ["wandb"],
        "slurm": ["psutil"],
    },
    entry_points={"console_scripts": ["ssl-jax = ssl_jax.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
