"""`python -m port`: speak, convert a voice, keep voices."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
