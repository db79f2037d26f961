"""What the user asks for: a sweep specification, read and checked whole before Ray starts, without Ray and torch."""
