"""Turns other people's layers or graphs into the plainest network of ours that computes the same."""
