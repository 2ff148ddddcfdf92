"""``python -m smallvit``."""

import sys

from smallvit.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
