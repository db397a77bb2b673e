"""The one exception for input that a user can mend."""

from pathlib import Path


class BadInput(Exception):
    """Bad input: one line that names the file, what is wrong and the hint.

    Entry points print it to stderr and end with exit status 2 (`experiments.cli.entry_point`).
    """

    def __init__(self, path: str | Path, problem: str, hint: str):
        self.path, self.problem, self.hint = str(path), problem, hint
        super().__init__(f"{path}: {problem}; {hint}".replace("\n", " "))
