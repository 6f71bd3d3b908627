"""What a job or a search is, read from YAML: data only, without torch or Ray."""
