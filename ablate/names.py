"""Names that become folders of the results: what they may be, so that none leads out of there."""

from __future__ import annotations

import re

from ablate.errors import UserError

LONGEST = 100  # characters; file systems allow 255 bytes, and files have names beside
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of no file on Windows


def wrong_with(name: object) -> str:
    """Why a name cannot be a folder's; empty where it can."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        return "must be letters, digits, '_', '-' and '.', to name a folder, with a letter or digit first"
    if len(name) > LONGEST:
        return f"has {len(name)} characters, but {LONGEST} is the most a folder's name may have here"
    if RESERVED.fullmatch(name) or name.endswith("."):
        return "cannot be a file's name on every system: choose another one"
    return ""


def checked_name(what: str, name: str) -> str:
    """The name of a study, a trial. Raises `UserError`."""
    if wrong := wrong_with(name):
        raise UserError(f"{what} {name[:150]!r} {wrong}")
    return name
