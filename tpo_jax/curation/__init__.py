"""From videos and questions to preference pairs, by the model's own answers."""
