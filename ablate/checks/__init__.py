"""The contract checks, by what they look at: any model, time, what is not a model."""
