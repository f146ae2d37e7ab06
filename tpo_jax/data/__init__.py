"""Video decode, frame sampling, preprocessing, prompts, pair records and the input pipeline."""
