"""Submit jobs to a Ray cluster's job server; follow, stop and fetch them."""
