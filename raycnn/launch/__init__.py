"""Ways to start the workers of a job. The spec says which; the loop cannot tell them apart."""
