"""Classifiers: known architectures, safe loading and saving, and a plain training loop."""

from .build import ARCHITECTURES, build_net
from .classifier import Classifier, Teacher, check_classifier
from .loading import load_classifier, recognise_arch, save_classifier
from .published import is_published
from .reading import Checkpoint, read_checkpoint
from .training import train_classifier, train_new

__all__ = [
    "ARCHITECTURES",
    "Checkpoint",
    "Classifier",
    "Teacher",
    "build_net",
    "check_classifier",
    "is_published",
    "load_classifier",
    "read_checkpoint",
    "recognise_arch",
    "save_classifier",
    "train_classifier",
    "train_new",
]
