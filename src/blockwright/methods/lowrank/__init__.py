"""Methods that find the thin factors of a weight."""
