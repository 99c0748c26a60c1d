"""`segdet migrate`: from detectron2's name to ours in a user's scripts; what has no counterpart."""

from segdet.migrate.command import main

__all__ = ["main"]
