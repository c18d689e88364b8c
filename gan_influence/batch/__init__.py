"""Notebooks × seeds × parameters, each run a folder: the grid, who executes it, and what comes out."""
