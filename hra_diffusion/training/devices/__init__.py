"""Memory and devices: memory format, offloading, quantization, sharding."""
