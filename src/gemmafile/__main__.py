"""`python -m gemmafile` is the command `gemmafile`."""

import sys

from gemmafile.cli.main import main

sys.exit(main())
