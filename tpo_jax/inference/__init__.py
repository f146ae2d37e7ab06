"""A loaded model: config, tokenizer, mesh and weights together; answers, streams, scores."""
