"""What lies in a data set: counts, duplicates, a contact sheet."""
