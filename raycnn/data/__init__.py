"""What is trained on: sources, decoded images, transforms of whole batches, and who sees what."""
