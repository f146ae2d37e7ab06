"""Model definitions: configs, Qwen2 decoder, vision towers, the video language model."""
