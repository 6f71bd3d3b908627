"""Image decoding and the memory-mapped image cache."""
