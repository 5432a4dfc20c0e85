"""Training: from a folder of pictures to an adapter. The loop yields records; screens and scripts consume them."""
