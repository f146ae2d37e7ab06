"""What model families share: configs, the decoder, LoRA, the video language model."""
