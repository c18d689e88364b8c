"""What notebooks need and users of the engine do not: published protocols and numbers, recordings, plots, widgets."""
