"""Batches on the console."""

from batches.admin import batches, tasks

__all__ = ["batches", "tasks"]
