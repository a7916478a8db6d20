"""Methods that make parts narrower."""
