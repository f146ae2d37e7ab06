"""What the train step and other commands need on a TPU slice, from the compiled programs."""
