"""Damaged and hostile files: refused in one line or taken, and nothing else happens."""
