"""This project and its peers, each used as its documentation shows."""
