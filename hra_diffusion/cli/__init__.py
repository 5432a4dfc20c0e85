"""The command ``hra-diffusion``: one module a sub-command. Nothing heavy is imported before a command runs."""
