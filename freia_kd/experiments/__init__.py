"""The paper's own experiments, run again: Table 1 and figure 2."""
