"""The studio's engine: generation, training jobs, library, uploads and metadata, independent of the page."""
