"""Pictures decoded to pixels, once, and stored."""
