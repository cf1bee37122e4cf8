"""`python -m citadel_py`: the same as `citadel-py`."""

from __future__ import annotations

import sys

from citadel_py.cli import main

sys.exit(main())
