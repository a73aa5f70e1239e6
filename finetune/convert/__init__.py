"""Other libraries' training data into groups, and back."""
