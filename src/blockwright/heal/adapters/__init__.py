"""Adapters, one a file; the file's name is the adapter's."""
