"""What is asked of networks, data and runs outside of training."""
