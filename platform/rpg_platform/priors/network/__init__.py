"""From somebody else's layers or graph to the plainest network of ours that computes the same."""
