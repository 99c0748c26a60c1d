"""Annotation files to standard dicts, checked; nothing here knows about names or the catalogs."""
