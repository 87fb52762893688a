"""`python -m port`: speak, convert a voice, keep voices."""

import sys

from port.cli import main

if __name__ == "__main__":
    sys.exit(main())
