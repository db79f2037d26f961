"""A sweep on disk: where its folder lies and what stands in it."""
