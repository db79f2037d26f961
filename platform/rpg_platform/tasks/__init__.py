"""What is to be done: tasks, their environments, and add-on rewards from code or from an expression."""
