"""Two runs of the suite side by side: `python -m reports.drift BEFORE.json AFTER.json [--ledger F] [--json F]`."""

import sys

from mlx_parity.report.drift import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m reports.drift"))
