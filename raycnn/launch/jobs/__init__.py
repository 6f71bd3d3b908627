"""Jobs sent to a cluster's job server, followed, stopped and fetched."""
