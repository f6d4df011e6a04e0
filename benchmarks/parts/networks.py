"""Networks that more than one benchmark runs."""

from torch import nn


class Classifier(nn.Module):
    """timm's ResNet-18. cifar_stem: a 3 x 3 stem without pooling, as usual for 32 x 32 pixels: 15 times the work."""

    def __init__(self, classes: int, cifar_stem: bool):
        import timm  # of the extra "demo"

        super().__init__()
        self.net = timm.create_model("resnet18", num_classes=classes)
        if cifar_stem:
            self.net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            self.net.maxpool = nn.Identity()

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}
