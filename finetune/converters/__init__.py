"""Convert training data of other libraries into groups, and back."""
