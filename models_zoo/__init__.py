"""Architectures by name: CIFAR ResNets, a wide plain network, torchvision's models, and the user's own factories."""

from models_zoo.registry import Architecture, find_architecture, require_repeated

__all__ = ["Architecture", "find_architecture", "require_repeated"]
