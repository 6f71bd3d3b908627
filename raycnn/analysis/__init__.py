"""Evaluate, compare, export and inspect trained networks and runs."""
