"""Job and search specs, read from YAML as plain data. Imports neither torch nor Ray."""
