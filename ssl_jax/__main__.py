"""`python -m ssl_jax`: the command `ssl-jax`, for where its script is not on the path."""

import sys

from ssl_jax.cli import main

if __name__ == "__main__":  # not in worker processes, which import this module under another name
    sys.exit(main())
