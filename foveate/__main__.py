"""`python -m foveate` is `foveate`."""

import sys

from foveate.cli import main

if __name__ == "__main__":
    sys.exit(main())
