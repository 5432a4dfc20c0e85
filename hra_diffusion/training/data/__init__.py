"""Training data: folders of images → crops, captions, masks and latents, in batches by seed and step."""
