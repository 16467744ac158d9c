"""Architectures by name: He's CIFAR ResNets, torchvision's models, and anyone's own factory."""

from models_zoo.registry import Architecture, find_architecture

__all__ = ["Architecture", "find_architecture"]
