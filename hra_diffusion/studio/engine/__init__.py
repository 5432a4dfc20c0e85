"""What the studio does, without any page: generation, training jobs, library, uploads, metadata."""
