"""Results to MLflow, exactly once: a spool on disk, a sender, and the runs that it writes."""
