"""Ways in and out: name tables, safetensors, diffusers folders, checkpoints."""
