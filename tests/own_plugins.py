"""Plugins stay registered for the life of a process: tests that add some take them out again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ablate import registry


@contextmanager
def own_plugins() -> Iterator[None]:
    """Forget the plugins that are added inside."""
    entries, files = set(registry._added), set(registry._plugin_files)
    try:
        yield
    finally:
        for key in registry._added.keys() - entries:
            registry._added.pop(key)
            registry._classes.pop(key, None)
        for file in registry._plugin_files.keys() - files:
            registry._plugin_files.pop(file)
