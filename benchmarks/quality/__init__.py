"""Quality of the trained model and time to it: fixed batches, adaptive batches and other rules."""
