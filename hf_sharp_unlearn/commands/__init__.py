"""The commands of `sharp-unlearn`, one file each: `main(argv)` parses its options and does its work."""

COMMANDS = {
    "unlearn": "make a model forget a part of its training data; write model, card and report",
    "evaluate": "measure how well a model has forgotten; write report.json, report.md and plots",
    "push": "upload an unlearned model to the Hub; with --replace, look after the history of the old one",
    "methods": "list the unlearning methods, their settings and where these come from",
    "memorize": "estimate memorization scores with many small models, and choose forget sets by them",
    "landscape": "draw the loss around one or more checkpoints, with sharpness and top Hessian eigenvalue",
    "benchmark": "time the kernels and whole training steps, fused against unfused",
    "demo": "unlearn wrong labels from a small ResNet, about a minute on 2 CPU cores",
}

__all__ = ["COMMANDS"]
