"""Checks of an installation: what `hra-diffusion doctor` prints. `examination` has the list of checks."""
