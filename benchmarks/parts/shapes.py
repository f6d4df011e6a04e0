"""Lists of parameter shapes: what the kernel part of a step works on."""

Shapes = list[tuple[int, ...]]


def resnet50() -> Shapes:
    """timm's ResNet-50 with 10 classes: 161 tensors, 23.5 M parameters, most of them small."""
    return of_timm("resnet50")


def of_timm(architecture: str) -> Shapes:
    import timm
    import torch

    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=10)
    return [tuple(weight.shape) for weight in model.parameters()]


def llama_1b() -> Shapes:
    """A Llama of 1.24 B parameters with tied embeddings: 146 tensors, most of the weight in large ones."""
    hidden, inner, keys, layers, words = 2048, 8192, 512, 16, 128256
    layer = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)]
    layer += [(inner, hidden), (inner, hidden), (hidden, inner), (hidden,), (hidden,)]
    return [(words, hidden), *layer * layers, (hidden,)]


def odd() -> Shapes:
    """Sizes that no vector width divides, scalars, empty tensors: 64 small ones and a large one, 3.2 M parameters."""
    return [(317, 157), (1,), (4099,), (), (0, 3), (13, 11, 3, 3), (65_537,), (255, 129)] * 8 + [(1_501, 1_301)]


SHAPES = {"resnet50": resnet50, "llama-1b": llama_1b, "odd": odd}
