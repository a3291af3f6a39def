"""Networks of the two papers as Equinox modules."""

from .cnn import CNN as CNN
from .resnet import ResNet as ResNet
