"""Tasks: what is learned, from which batches, and how it is measured."""
