"""The command line: one file per command, results on stdout, everything else on stderr."""

from blockwright.cli.app import main, run

__all__ = ["main", "run"]
