"""What the bundle runs: the same `loradesk` as the installed script."""

import multiprocessing
import sys

from loradesk_engine.cli import main

if __name__ == "__main__":
    multiprocessing.freeze_support()  # a worker process of a library must not open a second window
    if sys.argv[1:2] == ["--self-test"]:  # what installers call; options without a subcommand are the window's
        from loradesk_engine.cli import self_test

        sys.exit(self_test.main(sys.argv[2:]))
    sys.exit(main())
