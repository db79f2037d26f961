"""Ways to a prior: from another framework's file, from the user's own code, from demonstrations."""
