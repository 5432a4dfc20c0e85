"""Training data: folders of images → captions, masks, crops, latents → batches by seed and step."""
