"""hra_diffusion: personalise diffusion models with Householder Reflection Adaptation (HRA, arXiv 2405.17484)."""
