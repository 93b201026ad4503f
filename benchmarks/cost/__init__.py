"""Time that a measurement, a loader and a whole run with adaptbs take more than without it."""
