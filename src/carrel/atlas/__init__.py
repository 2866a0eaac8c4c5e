"""The atlas: one entry per method, with the experiment that shows its claim. Nothing here loads torch."""
