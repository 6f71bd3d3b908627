"""Survey a data set: counts, duplicates, a contact sheet."""
