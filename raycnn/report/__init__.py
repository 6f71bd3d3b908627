"""HTML reports and figures of runs, searches and comparisons."""
