"""ResNet-18 of width 16 for 32-pixel images in PyTorch, the network of src/nn/resnet.rs; names are torchvision's.

`rounded`: everything but the head under autocast to bf16, which is what dalcore's bf16 stores."""
import torch

MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]  # of CIFAR-10, per channel


class Block(torch.nn.Module):
    def __init__(self, c, k, stride):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(c, k, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(k)
        self.conv2 = torch.nn.Conv2d(k, k, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(k)
        self.downsample = None
        if stride != 1 or c != k:
            self.downsample = torch.nn.Sequential(torch.nn.Conv2d(c, k, 1, stride, bias=False), torch.nn.BatchNorm2d(k))

    def forward(self, x):
        h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(h + (x if self.downsample is None else self.downsample(x)))


class ResNet(torch.nn.Module):
    def __init__(self, rounded, width=16, classes=10):
        super().__init__()
        self.rounded = rounded
        self.conv1 = torch.nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(width)
        c = width
        for stage in range(4):
            k = width << stage
            blocks = torch.nn.Sequential(Block(c, k, 2 if stage else 1), Block(k, k, 1))
            self.add_module(f"layer{stage + 1}", blocks)
            c = k
        self.fc = torch.nn.Linear(c, classes)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.rounded):
            x = torch.relu(self.bn1(self.conv1(x)))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.nn.functional.avg_pool2d(x.to(self.fc.weight.dtype), 4).flatten(1))


def network(weights, dtype, rounded=False):
    """The network with these weights, channels last."""
    net = ResNet(rounded)
    missing, unknown = net.load_state_dict(weights, strict=False)
    assert not unknown and all(m.endswith("num_batches_tracked") for m in missing), (missing, unknown)
    return net.to(dtype).to(memory_format=torch.channels_last)
