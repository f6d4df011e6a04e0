"""What unlearning is judged by. Each metric returns plain numbers."""

from .accuracy import accuracy, predicted_classes
from .tow import tug_of_war

__all__ = ["accuracy", "predicted_classes", "tug_of_war"]
