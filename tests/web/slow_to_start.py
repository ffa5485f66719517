"""A child process that takes longer to start than its first call may take."""

from __future__ import annotations

import time

time.sleep(1.5)

FUNCTIONS = {"add": lambda a, b: a + b}
