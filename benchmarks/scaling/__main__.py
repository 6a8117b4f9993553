"""python -m benchmarks.scaling: the tables of `points`."""

import sys

from .points import main

if __name__ == "__main__":
    sys.exit(main())
