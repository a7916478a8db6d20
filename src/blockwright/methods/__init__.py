"""Methods: which values to put into a format.  One file per method; its name is the file's name."""
