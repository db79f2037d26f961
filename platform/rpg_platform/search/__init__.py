"""Searching the weights: which settings are tried, and which of them are trained to the end."""
