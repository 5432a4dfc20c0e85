"""What a run writes: log, checkpoints, validation images, trackers."""
