"""What a finding is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Check:
    """One line of a report.

    Attributes
    ----------
    name : str
        What was looked at.
    ok : bool
        Whether all is well.
    found : str
        What was found.
    do : str
        What to do about it; empty where all is well.
    """

    name: str
    ok: bool
    found: str
    do: str = ""

    def __post_init__(self):
        if self.ok:
            self.do = ""
        # Names of files need not be text that can be printed.
        self.found = self.found.encode(errors="backslashreplace").decode()
