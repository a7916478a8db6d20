"""Methods that choose which weights stay, and their values."""
