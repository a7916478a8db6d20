"""Training-time recipes.  One file per recipe; its name is the file's name."""
