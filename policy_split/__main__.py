"""python -m policy_split: the command line, as `policy-split`."""

import sys

from policy_split.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
