"""What run folders say together: found, grouped into arms and sweeps, compared seed by seed, and told as text."""
