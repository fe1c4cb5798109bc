"""`python -m splatad` is `splatad`."""

import sys

from splatad.cli import main

if __name__ == "__main__":
    sys.exit(main())
