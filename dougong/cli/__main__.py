"""`python -m dougong.cli`."""

import sys

from dougong.cli import main

sys.exit(main())
