"""Runs that belong together: which arms there are, who trains what, what it will take."""
