"""Other programs' files, read, written and proved."""
