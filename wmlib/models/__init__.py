"""Networks of the two papers as Equinox modules."""

from .cnn import CNN as CNN
from .layer_norm_cnn import LayerNormCNN as LayerNormCNN
from .lenet import LeNet300 as LeNet300
from .resnet import ResNet as ResNet
from .transformer import Transformer as Transformer
