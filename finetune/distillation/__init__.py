"""Score groups with a teacher and train a student on the scores, in one command."""
