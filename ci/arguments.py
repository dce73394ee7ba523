"""The parser of every command of the judge."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from ci.verdict import USAGE


class Parser(argparse.ArgumentParser):
    """Ends with 3 where arguments make no sense: 1 and 2 are verdicts."""

    def error(self, message: str) -> NoReturn:
        """Says how the command is used, and ends."""
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")
