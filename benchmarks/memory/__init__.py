"""The search for the largest batch that fits, against those of other packages, on simulated devices."""
