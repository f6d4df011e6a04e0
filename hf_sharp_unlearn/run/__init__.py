"""What happens once a run, around its steps: what is refused, what is taken from the starting weights, how long epochs
are, what is undone or chosen in the end. Nothing here happens in a step.
"""

from .classes import classes_to_draw
from .epochs import EpochHooks
from .recovery import Attempt
from .rewind import Rewind
from .start import StartHooks

__all__ = ["Attempt", "EpochHooks", "Rewind", "StartHooks", "classes_to_draw"]
