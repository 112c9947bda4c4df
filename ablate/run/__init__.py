"""Running trials: what to run, what is done, where it runs, who is told."""
