"""The components: one class each, found by the registry in these files. Nothing is imported here."""
