"""`python -m freia_kd`, the same as `freiakd`."""

from .cli.main import main

main(prog_name="freiakd")
