"""`python -m server`: the launcher's command line."""

import sys

from server.launcher.cli import main

if __name__ == "__main__":
    sys.exit(main())
