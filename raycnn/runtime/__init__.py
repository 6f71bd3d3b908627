"""What a training runs on: devices, processes, random numbers."""
