"""What the bundle runs: the same `loradesk` as the installed script."""

import multiprocessing
import sys

from loradesk_engine.cli import main

if __name__ == "__main__":
    multiprocessing.freeze_support()  # a worker process of a library must not open a second window
    sys.exit(main())
