"""`python -m dougong` is the command line."""

import sys

from dougong.cli import main

sys.exit(main())
