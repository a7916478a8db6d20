"""Policies: one paper, one file; a file's name is the policy's name."""
