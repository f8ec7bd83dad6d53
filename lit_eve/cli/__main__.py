"""``python -m lit_eve.cli``: the same as ``lit-eve``."""

import sys

from lit_eve.cli import main

sys.exit(main())
