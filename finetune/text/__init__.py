"""Compare texts: equal ones and near-duplicates."""
