"""Where UnlearningTrainer differs from Trainer on purpose: {part of a test's id: reason}. Such a test must fail."""

DIFFERENCES: dict[str, str] = {}
