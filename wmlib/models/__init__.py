"""Networks of the two papers as Equinox modules."""

from .checkpoints import load_pretrained as load_pretrained
from .checkpoints import save_pretrained as save_pretrained
from .cnn import CNN as CNN
from .layer_norm_cnn import LayerNormCNN as LayerNormCNN
from .lenet import LeNet300 as LeNet300
from .resnet import ResNet as ResNet
from .transformer import Transformer as Transformer
