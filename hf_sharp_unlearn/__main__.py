"""`python -m hf_sharp_unlearn` is `sharp-unlearn`."""

import sys

from .commands.cli import main

if __name__ == "__main__":
    sys.exit(main())
