"""Networks of the two papers as Equinox modules."""

from .cnn import CNN as CNN
