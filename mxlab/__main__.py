"""``python -m mxlab``."""

import sys

from mxlab.cli import main

sys.exit(main())
