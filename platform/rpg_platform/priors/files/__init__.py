"""Other people's files, inert: archives, pickles and tensors are read, and nothing in them is executed."""
