"""Train state and model directories on disk."""
