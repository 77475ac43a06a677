"""The networks of the benchmarks in PyTorch, as a user would write them: channels_last, and compiled where asked.

Their parameters are as many as those of jaxcnn's models. Only this file imports PyTorch at its top, so a benchmark
imports it where PyTorch is installed.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# ---- networks


class LeNet5(nn.Module):
    """LeCun et al. 1998, as it is usually built today."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.dense1, self.dense2 = nn.Linear(400, 120), nn.Linear(120, 84)
        self.head = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.dense1(x.flatten(1)))
        return self.head(F.relu(self.dense2(x)))


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """He-normal by fan-out, no bias."""
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=(size - 1) // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class PaddedShortcut(nn.Module):
    """He et al. 2016, option A: every stride-th pixel, and zeros as the new channels."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def shortcut(inputs: int, outputs: int, stride: int, *, padded: bool = False) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if padded:
        return PaddedShortcut(outputs - inputs, stride)
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, features: int, stride: int, *, padded: bool = False):
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, features, 3, stride), nn.BatchNorm2d(features)
        self.conv2, self.norm2 = conv(features, features, 3), nn.BatchNorm2d(features)
        self.shortcut = shortcut(inputs, features, stride, padded=padded)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """With its stride on the 3x3 convolution."""

    expansion = 4

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.conv1, self.norm1 = conv(inputs, features, 1), nn.BatchNorm2d(features)
        self.conv2, self.norm2 = conv(features, features, 3, stride), nn.BatchNorm2d(features)
        self.conv3, self.norm3 = conv(features, 4 * features, 1), nn.BatchNorm2d(4 * features)
        self.shortcut = shortcut(inputs, 4 * features, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """He et al. 2016: stem, stages that halve the image, mean over pixels, head."""

    def __init__(
        self,
        block: Callable[..., nn.Module],
        stage_sizes: Sequence[int],
        stage_features: Sequence[int],
        *,
        expansion: int = 1,
        stem: str = "small",
        num_classes: int = 10,
    ):
        super().__init__()
        first = stage_features[0]
        if stem == "imagenet":
            self.stem = nn.Sequential(
                conv(3, first, 7, 2), nn.BatchNorm2d(first), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1)
            )
        else:
            self.stem = nn.Sequential(conv(3, first, 3), nn.BatchNorm2d(first), nn.ReLU())
        blocks, inputs = [], first
        for stage, (size, features) in enumerate(zip(stage_sizes, stage_features, strict=True)):
            for number in range(size):
                blocks.append(block(inputs, features, 2 if stage and not number else 1))
                inputs = features * expansion
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def _padded_block(inputs: int, features: int, stride: int) -> nn.Module:
    return BasicBlock(inputs, features, stride, padded=True)


def resnet20(num_classes: int = 10) -> nn.Module:
    return ResNet(_padded_block, (3, 3, 3), (16, 32, 64), num_classes=num_classes)


def resnet18(num_classes: int = 10, stem: str = "small") -> nn.Module:
    return ResNet(BasicBlock, (2, 2, 2, 2), (64, 128, 256, 512), stem=stem, num_classes=num_classes)


def resnet50(num_classes: int = 1000, stem: str = "imagenet") -> nn.Module:
    widths = (64, 128, 256, 512)
    return ResNet(Bottleneck, (3, 4, 6, 3), widths, expansion=4, stem=stem, num_classes=num_classes)


class BiasNorm(nn.BatchNorm2d):
    """Batch norm whose scale stays 1, in float32 whatever the input's dtype."""

    def __init__(self, features: int):
        super().__init__(features, eps=1e-12, momentum=1 - 0.6)  # PyTorch's momentum is the share of the new
        self.weight.requires_grad_(False)


class Group(nn.Module):
    """Convolution, pool, norm, GELU; convolution, norm, GELU."""

    def __init__(self, inputs: int, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, padding="same", bias=False)
        self.conv2 = nn.Conv2d(features, features, 3, padding="same", bias=False)
        self.norm1, self.norm2 = BiasNorm(features), BiasNorm(features)
        for layer in (self.conv1, self.conv2):  # the first filters pass the inputs through
            nn.init.dirac_(layer.weight.data[: layer.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Airbench(nn.Module):
    """Jordan 2024, arXiv:2404.00498: frozen 2x2 whitening, three groups, head. For 32x32 pixels."""

    def __init__(self, widths: Sequence[int], *, logit_scale: float, muon: bool = False, num_classes: int = 10):
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        first, second, third = widths
        self.groups = nn.Sequential(Group(24, first), Group(first, second), Group(second, third))
        self.head = nn.Linear(third, num_classes, bias=False)
        self.logit_scale = logit_scale
        with torch.no_grad():
            if muon:
                self.head.weight.div_(self.head.weight.std())
            else:
                self.whiten.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.groups(F.gelu(self.whiten(x)))
        return self.head(F.max_pool2d(x, 3).flatten(1)) * self.logit_scale


def airbench93(num_classes: int = 10) -> Airbench:
    return Airbench((64, 128, 128), logit_scale=1 / 9, num_classes=num_classes)


def airbench94(num_classes: int = 10) -> Airbench:
    return Airbench((64, 256, 256), logit_scale=1 / 9, num_classes=num_classes)


def airbench94_muon(num_classes: int = 10) -> Airbench:
    return Airbench((64, 256, 256), logit_scale=1 / 256, muon=True, num_classes=num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "resnet20": resnet20,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "airbench93": airbench93,
    "airbench94": airbench94,
    "airbench94_muon": airbench94_muon,
}


# ---- a step of ordinary training, on one batch that lies on the device


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    """Returns when the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Step:
    """One model, its SGD with Nesterov momentum, and one batch; `train` and `forward` are what is measured.

    The batch is uint8 and normalised in the step, as jaxcnn's is. bf16 and fp16 are autocast's.
    """

    def __init__(self, model: nn.Module, images: np.ndarray, labels: np.ndarray, *, precision: str, compiled: bool):
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs, as in XLA
        self._device, self._dtype = device(), DTYPES[precision]
        self._model = model.to(self._device).to(memory_format=torch.channels_last).train()
        kernels = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        groups = [{"params": kernels, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True, fused=True)
        self._images = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2)  # NHWC memory stays as it is
        self._labels = torch.from_numpy(labels).long().to(self._device)
        mode = "max-autotune" if self._device.type == "cuda" else "default"
        compile_ = (lambda f: torch.compile(f, mode=mode, dynamic=False)) if compiled else (lambda f: f)
        self._loss, self._logits = compile_(self._plain_loss), compile_(self._plain_logits)

    def _autocast(self) -> AbstractContextManager:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)

    def _plain_logits(self, images: Tensor) -> Tensor:
        return self._model(images.float() * (1 / (255 * 0.25)) - 2.0)

    def _plain_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self._plain_logits(images).float(), labels)

    def train(self) -> None:
        """One update."""
        self._model.train()
        with self._autocast():
            loss = self._loss(self._images, self._labels)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()

    def forward(self) -> None:
        """The logits under fixed weights and running statistics."""
        self._model.eval()
        with torch.inference_mode(), self._autocast():
            self._logits(self._images)


def first_call_seconds(call: Callable[[], None]) -> float:
    """Of compiling, and running once."""
    start = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - start
