"""The state of accelerate, of which a process has one: runs that differ in precision follow each other in tests."""

from accelerate.state import AcceleratorState, GradientState


def reset_accelerate() -> None:
    """Forget accelerate's state, so that the next run sets its own precision."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
