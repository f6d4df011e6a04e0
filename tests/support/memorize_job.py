"""Estimates memorization slowly, to be killed: python memorize_job.py FOLDER SECONDS."""

import sys
import time

import numpy as np

from hf_sharp_unlearn.analysis import estimate_memorization

SAMPLES = 40


class SlowFit:
    """A stand-in for training whose answers are a function of the rows and the seed, as a real one's are."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, rows, seed):
        time.sleep(self.seconds)
        right = np.random.default_rng(seed).random(SAMPLES) < 0.6
        right[rows] = True
        return right


if __name__ == "__main__":
    folder, seconds = sys.argv[1], float(sys.argv[2])
    estimate_memorization(SlowFit(seconds), SAMPLES, models=12, output_dir=folder, seed=5, progress=False)
