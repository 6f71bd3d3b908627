"""Launchers: start the workers of a job in this process, by torchrun, or on Ray."""
