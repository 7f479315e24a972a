"""`python -m loradesk_engine.cli` is `loradesk`."""

import sys

from loradesk_engine.cli import main

sys.exit(main())
