"""Training one trial: objective, optimizer, schedule, evaluation, checkpoint."""
