"""Answers from the model: prefill of the shared prefix, cached decoding, sampling, streaming."""
