"""Running a sweep under Ray Tune: start, progress, guards, stop, and what other shells can see of it."""
