"""The commands of training, each with its options."""
