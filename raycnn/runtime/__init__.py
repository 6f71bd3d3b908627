"""The runtime of training: devices, process groups, memory and random numbers."""
