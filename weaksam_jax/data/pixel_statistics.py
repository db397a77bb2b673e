"""What pixels published networks were trained on: mean and standard deviation by channel.

The one place of these numbers, for both sides.
"""

# ImageNet's, for RGB in 0..1 (torchvision, timm, DeiT) and in 0..255 (SAM).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_MEAN_255, IMAGENET_STD_255 = (
    tuple(round(255 * value, 3) for value in values) for values in (IMAGENET_MEAN, IMAGENET_STD)
)
# MSRA's ResNets: BGR in 0..255 less the mean, not divided (detectron2).
MSRA_MEAN, MSRA_STD = (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)
# EfficientNet-Lite0: RGB in 0..255, the same for all channels.
LITE0_MEAN, LITE0_STD = 127.0, 128.0
# Caffe's VGG16 in the official code of MIST and of OICR: BGR in 0..255 less the mean.
MIST_MEAN, OICR_MEAN = (102.9801, 115.9465, 122.7717), (104.0, 117.0, 124.0)
