"""`python -m port`: speak, convert a voice, keep voices."""

import sys

from .app.arguments import parser


def main() -> int:
    """Parse first: help and mistakes are answered before MLX is loaded."""
    options = parser().parse_args()
    from .app.cli import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
