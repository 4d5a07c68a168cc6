"""Plain VGG and ResNet networks and their multi-branch forms."""

from .zoo import create_model, list_models

__all__ = ["create_model", "list_models"]
