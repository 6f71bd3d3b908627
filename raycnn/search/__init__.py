"""Hyperparameter and architecture search: samplers, schedulers, trials and the leaderboard."""
