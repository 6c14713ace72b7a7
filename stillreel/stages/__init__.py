"""The work of the five tasks; their policy (retries, cache keys) stands in `tasks/`."""
