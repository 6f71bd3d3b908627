"""Data: sources, decoded images, batch transforms, splits and the loader of each worker."""
