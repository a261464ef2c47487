"""`python -m speechsum` is the command line."""

import sys

from speechsum.cli import main

if __name__ == "__main__":
    sys.exit(main())
