"""Estimates of the noise scale, ours and others', against the exact value."""
