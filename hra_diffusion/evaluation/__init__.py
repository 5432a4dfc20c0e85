"""Evaluation of a finished run: subject fidelity and drift, or agreement with a control."""
