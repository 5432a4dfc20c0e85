"""Base models: their facts, and the worker that holds the loaded one."""
