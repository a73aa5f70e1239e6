"""Check groups, and write a fixed copy of them."""
