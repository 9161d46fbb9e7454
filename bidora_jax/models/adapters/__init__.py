"""What is trained: settings, targets, start, merging, conversion, approximation, drift."""
