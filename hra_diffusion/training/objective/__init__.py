"""The training objective: noise levels, noise processes and losses."""
