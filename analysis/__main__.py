"""`python -m analysis TABLE`: `ablate fit` where there is no torch."""

from __future__ import annotations

import sys

from analysis.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "python -m analysis"))
