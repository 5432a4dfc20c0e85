"""Training: from a folder of images to an adapter. The loop yields records; screens and scripts consume them."""
