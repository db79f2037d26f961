"""Other people's policy files: a module or folder for each format, and the table of all of them."""
