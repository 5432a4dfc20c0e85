"""The training loop: steps, optimizers and their state."""
