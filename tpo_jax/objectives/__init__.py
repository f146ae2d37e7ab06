"""Pure functions from log-probabilities to losses and metrics."""
