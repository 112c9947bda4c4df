"""Hugging Face data sets by name, through the `hub` extra."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from ablate.errors import SpecError


def materialise(name: str, config: str | None, columns: Sequence[str]) -> Path:
    """The data set's columns as one local Parquet file, made once.

    All its splits are joined: the harness cuts its own, by document, the same for every trial. `name` may also
    be a local folder in any layout that `datasets` reads. Raises `SpecError` when it cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise SpecError(["hub"], "needs the hub extra: pip install 'ablate-harness[hub]'") from None
    key = hashlib.sha256(f"{name}/{config}/{'/'.join(columns)}".encode()).hexdigest()[:16]
    home = Path(os.environ.get("ABLATE_CACHE", Path.home() / ".cache" / "ablate"))
    file = home / "hub" / f"{key}.parquet"
    if file.is_file() and not Path(name).exists():
        return file
    try:
        splits = datasets.load_dataset(name, config)
        joined = datasets.concatenate_datasets(list(splits.values()))
    except Exception as error:  # the library raises many kinds, network failures among them
        raise SpecError(["hub"], f"{name!r} cannot be loaded: {type(error).__name__}: {error}") from None
    for column in columns:
        if column not in joined.column_names:
            raise SpecError(["column"], f"{column!r} is not in {name!r}; known: {', '.join(joined.column_names)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    joined.select_columns(list(columns)).to_parquet(str(part))
    os.replace(part, file)
    return file
