"""`python -m bedstone`: the command line, by the interpreter that is named."""

import sys

from bedstone.cli import main

if __name__ == "__main__":
    sys.exit(main())
