"""Reports of runs, comparisons and Table 1: what they hold, and how they are shown."""
