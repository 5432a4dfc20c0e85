"""Images: the store, their metadata, masks and grids."""
