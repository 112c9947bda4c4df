"""The program `ablate`, also `python -m ablate`."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import Any, NoReturn

from ablate.cli import main


def program() -> NoReturn:
    """Run the command that this process was started for, and end the process.

    What is loaded is not taken apart, which takes seconds where that is torch, pandas and MLflow.
    """
    code: list[Any] = [1]  # where an exception ends it
    atexit.register(lambda: _leave(code[0]))  # the first that is registered is the last to run
    try:
        code[0] = main()
    except SystemExit as ended:
        code[0] = ended.code
        raise
    raise SystemExit(code[0])


def _leave(code: int | None) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    program()
