"""A sweep as a Ray job, from a machine that sees neither its storage nor its database: submitted, followed, stopped."""
