"""Text, tokens and batches. The batch of step t is a pure function of (data fingerprint, seed, t)."""
