"""A run, once for both engines, and the suites of runs."""
