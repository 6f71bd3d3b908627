"""A search: many trainings of changed jobs, in one folder, compared with one another."""
