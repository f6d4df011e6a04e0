"""The parts of `gpu_check.py`: each a command of its own, and what they share."""
