"""Describe models without reading their weights."""
