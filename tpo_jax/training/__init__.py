"""State, the pure step, the loop."""
