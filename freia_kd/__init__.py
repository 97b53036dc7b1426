"""Data-free knowledge distillation with bi-directional normalizing flows, on FrEIA and normflows."""

__version__ = "0.1.0"
