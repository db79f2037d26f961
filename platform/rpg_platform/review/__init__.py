"""What a user looks at after a sweep: the report page, figures and videos of its policies."""
