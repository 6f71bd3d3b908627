"""Data set inspection: counts, duplicates, near-duplicates, a contact sheet."""
