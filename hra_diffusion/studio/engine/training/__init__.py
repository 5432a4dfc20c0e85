"""Training: jobs, their settings and results, and captions."""
