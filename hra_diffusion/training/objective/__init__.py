"""The training objective: noise processes, random timesteps and noise, losses."""
