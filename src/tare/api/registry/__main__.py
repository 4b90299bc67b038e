"""``python -m tare.api.registry``: what ``tare registry`` becomes."""

import sys

from tare.api.registry.command import main

sys.exit(main(sys.argv[1:]))
