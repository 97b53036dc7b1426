"""Labelled data sets, toy distributions and synthetic sets."""
