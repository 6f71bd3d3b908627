"""Runs at a URI: the remote folder, and a local working copy kept in step with it."""
