"""Answers to the rows of a large file, by many workers, each row exactly once (docs/scaling.md)."""
