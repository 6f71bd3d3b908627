"""The training loop and its parts: optimizers, metrics, checkpoints and callbacks."""
