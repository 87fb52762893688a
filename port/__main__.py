"""`python -m port`: speak, convert a voice, keep voices."""

import sys


def main() -> int:
    """Parse first: help and wrong arguments are answered without loading MLX."""
    try:  # from the first import on, because imports may take seconds
        from .app.arguments import parser

        options = parser().parse_args()
        from .app.cli import run

        return run(options)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
