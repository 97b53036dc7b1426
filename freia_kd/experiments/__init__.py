"""The paper's own experiments, run again: Table 1 and figures 2 to 4."""
