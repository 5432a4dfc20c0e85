"""Adapter files and image files: safetensors, JSON and TOML, never pickle; independent of pipelines."""
