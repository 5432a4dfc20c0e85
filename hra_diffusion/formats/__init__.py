"""Files that adapters live in: safetensors and JSON, never pickle."""
