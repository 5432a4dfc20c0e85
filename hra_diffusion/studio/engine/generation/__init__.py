"""Image generation: requests, their queue, and the generator."""
