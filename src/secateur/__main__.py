"""`python -m secateur`, for launchers such as accelerate and torchrun."""

import sys

from secateur.cli import main

sys.exit(main())
