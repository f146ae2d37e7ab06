"""What the train step needs on a TPU slice, from the compiled program."""
