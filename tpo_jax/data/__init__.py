"""Prompts and labels, published formats, pair records, shards and the input pipeline."""
