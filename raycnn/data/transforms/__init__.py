"""What is done to whole batches of images, on the device."""
