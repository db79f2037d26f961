"""Searching the weights: which setting is tried next, and which of them are trained to the end."""
