"""The command line: words only. Each command has a file, reads its options and calls one function of a job."""

from eckart.cli.app import app, main

__all__ = ["app", "main"]
