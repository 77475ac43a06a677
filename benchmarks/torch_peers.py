"""The networks of the benchmarks in PyTorch, as a user would write them: channels_last, and compiled where asked.

Their parameters are as many as those of jaxcnn's models. Below them: a step to be measured, and the airbench recipes
as whole trainings (Jordan 2024, arXiv:2404.00498, and the later variant with Muon), from their description. Only this
file imports PyTorch at its top, so a benchmark imports it where PyTorch is installed.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

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


def make(name: str, num_classes: int, *, stem: str) -> nn.Module:
    """One of ours above, else torchvision's of that name."""
    if name in MODELS:
        return MODELS[name](num_classes=num_classes, **({"stem": stem} if name in ("resnet18", "resnet50") else {}))
    try:
        return _torchvision(name)(num_classes=num_classes)
    except ImportError:
        raise RuntimeError("torchvision is not installed") from None


def _torchvision(name: str) -> Callable[..., nn.Module]:
    try:
        import torchvision.models
    except RuntimeError:  # a torchvision that was built for CUDA, beside a PyTorch without it
        for module in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        # Its classifiers need none of its operators, but its import asks for these two.
        operators = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(operators)  # what it defines is gone with it
        import torchvision.models

    return getattr(torchvision.models, name)


_KEPT: list[torch.library.Library] = []


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


# ---- the airbench recipes: CIFAR-10 from uint8 arrays to the accuracy of the final weights

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SHIFT = 2  # pixels of random translation
EVAL_BATCH = 2000


@dataclass(frozen=True)
class Recipe:
    """What differs between the variants; `muon` chooses the second optimizer, head and schedule."""

    make: Callable[..., Airbench]
    epochs: float
    batch_size: int
    muon: bool = False
    bias_epochs: int = 3  # the whitening bias learns this long


RECIPES = {
    "93": Recipe(airbench93, epochs=11, batch_size=1024),
    "94": Recipe(airbench94, epochs=9.9, batch_size=1024),
    "94_muon": Recipe(airbench94_muon, epochs=8, batch_size=2000, muon=True),
}


@dataclass(frozen=True)
class Result:
    """Of one training; `seconds` as the records count them, `compile_seconds` of the run before that."""

    accuracy: float  # with test-time augmentation
    plain_accuracy: float  # without; measured after the clock has stopped
    seconds: float
    compile_seconds: float
    steps: int
    train_loss: float  # mean over the last batch


class Cifar:
    """The two splits on the device, as uint8; what is made of them is inside the timed span."""

    def __init__(self, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]):
        where = device()
        self.train_images, self.test_images = (torch.from_numpy(split[0]).to(where) for split in (train, test))
        self.train_labels, self.test_labels = (torch.from_numpy(split[1]).long().to(where) for split in (train, test))

    def with_random_labels(self) -> "Cifar":
        other = object.__new__(Cifar)
        other.__dict__ |= self.__dict__
        other.train_labels = torch.randint(0, 10, self.train_labels.shape, device=self.train_labels.device)
        return other


def normalise(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [N, H, W, C] to the same in `dtype`."""
    mean, std = (torch.tensor(values, dtype=dtype, device=images.device) for values in (MEAN, STD))
    return (images.to(dtype) / 255 - mean) / std


def pad(images: Tensor, size: int) -> Tensor:
    """[N, H, W, C] with `size` reflected pixels on each side; the edge itself is not repeated."""
    padded = F.pad(images.permute(0, 3, 1, 2), (size,) * 4, mode="reflect")
    return padded.permute(0, 2, 3, 1).contiguous()


def crop(padded: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """[N, side, side, C]: each image's own window, whose corner is at (top [N], left [N])."""
    along = torch.arange(side, device=padded.device)
    rows, columns = top[:, None] + along, left[:, None] + along
    number = torch.arange(len(padded), device=padded.device)
    return padded[number[:, None, None], rows[:, :, None], columns[:, None, :]]


class Augmented:
    """The training images of each epoch: flipped in turn, shifted anew."""

    def __init__(self, images: Tensor):
        """Normalised [N, H, W, C]. Half of them are mirrored once, here."""
        mirrored = torch.rand(len(images), device=images.device) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
        self._side, self._padded = images.shape[1], pad(images, SHIFT)

    def epoch(self, number: int) -> Tensor:
        """[N, H, W, C]; every image looks the other way than in the epoch before."""
        corners = torch.randint(0, 2 * SHIFT + 1, (2, len(self._padded)), device=self._padded.device)
        images = crop(self._padded, corners[0], corners[1], self._side)
        return images.flip(2) if number % 2 else images


def whitening_filters(images: Tensor) -> Tensor:
    """[24, 3, 2, 2]: the eigenvectors of the 2x2 patches' second moments, by their deviation, and their negatives."""
    patches = images.permute(0, 3, 1, 2).float().unfold(2, 2, 1).unfold(3, 2, 1)  # N, C, rows, columns, 2, 2
    flat = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    eigenvalues, eigenvectors = torch.linalg.eigh(flat.T @ flat / len(flat))
    filters = (eigenvectors / torch.sqrt(eigenvalues + 5e-4)).T.reshape(12, 3, 2, 2)
    return torch.cat([filters, -filters])


def orthogonalise(matrix: Tensor) -> Tensor:
    """Three steps of Newton and Schulz's iteration, with Muon's coefficients; in bfloat16 on GPUs."""
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x / (x.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(3):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).to(matrix.dtype)


class Muon:
    """Momentum, orthogonalised; each filter bank is first scaled to the norm of as many unit filters."""

    def __init__(self, filters: Sequence[nn.Parameter], learning_rate: float = 0.24, momentum: float = 0.6):
        self._filters, self._rate, self._momentum = list(filters), learning_rate, momentum
        self._buffers = [torch.zeros_like(each) for each in self._filters]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update at `factor` of the learning rate."""
        for weight, buffer in zip(self._filters, self._buffers, strict=True):
            assert weight.grad is not None
            buffer.mul_(self._momentum).add_(weight.grad)
            update = weight.grad + self._momentum * buffer
            weight.mul_(math.sqrt(len(weight)) / weight.norm())
            weight.sub_(orthogonalise(update.reshape(len(update), -1)).reshape(update.shape), alpha=self._rate * factor)


class Optimizer:
    """SGD with Nesterov momentum 0.85 over its groups, and Muon where the recipe has it. Decay is divided by the rate,
    so that a step shrinks weights by the same share in each group."""

    def __init__(self, recipe: Recipe, model: Airbench, total_steps: int, steps_per_epoch: int):
        self._recipe, self._total_steps, self._weights = recipe, total_steps, list(model.parameters())
        self._bias_steps = recipe.bias_epochs * steps_per_epoch
        self._whiten_bias = model.whiten.bias
        filters = [p for p in model.groups.parameters() if p.ndim == 4]
        biases = [p for p in model.groups.parameters() if p.ndim == 1 and p.requires_grad]
        self._muon = None
        if recipe.muon:
            rates = {0.053: biases, 0.67: [model.head.weight]}
            bias_rate, decay = 0.053, 2e-6 * recipe.batch_size
            self._muon = Muon(filters)
        else:
            scale = 1024 * (1 + 1 / (1 - 0.85))
            bias_rate, decay = 11.5 / scale, 0.0153 * recipe.batch_size / scale
            rates = {bias_rate: [*filters, model.head.weight], 64 * bias_rate: biases}
        rates_and_groups = [(bias_rate, [self._whiten_bias]), *rates.items()]
        self._rates = [rate for rate, _ in rates_and_groups]
        groups = [{"params": group, "lr": rate, "weight_decay": decay / rate} for rate, group in rates_and_groups]
        self._sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True, fused=device().type == "cuda")

    def factors(self, step: int) -> tuple[float, float]:
        """Of the rates at a step, counted from 0: of the whitening bias, and of all else."""
        if self._recipe.muon:
            return max(0.0, 1 - step / self._bias_steps), 1 - step / self._total_steps
        warmup = int(0.23 * self._total_steps)
        factor = np.interp(step, [0, warmup, self._total_steps], [0.2, 1.0, 0.07])
        return float(factor), float(factor)

    def before(self, step: int) -> None:
        """Freezes what no longer learns, so that its gradient is not computed either."""
        self._whiten_bias.requires_grad_(step < self._bias_steps)

    def step(self, step: int) -> None:
        """Applies the gradients that lie on the parameters, then drops them."""
        bias_factor, factor = self.factors(step)
        for number, (group, rate) in enumerate(zip(self._sgd.param_groups, self._rates, strict=True)):
            group["lr"] = rate * (factor if number else bias_factor)
        self._sgd.step()
        if self._muon:
            self._muon.step(factor)
        for weight in self._weights:
            weight.grad = None


class Lookahead:
    """A slow copy of all that is float in the network, to which it returns every five steps."""

    def __init__(self, model: nn.Module):
        self._fast = [x for x in model.state_dict().values() if x.is_floating_point()]
        self._slow = [x.clone() for x in self._fast]

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """slow <- decay * slow + (1 - decay) * fast; fast <- slow."""
        for slow, fast in zip(self._slow, self._fast, strict=True):
            slow.lerp_(fast, 1 - decay)
            fast.copy_(slow)


@torch.inference_mode()
def predict(logits_of: Callable[[Tensor], Tensor], images: Tensor, *, augmented: bool) -> Tensor:
    """Logits [N, 10] of normalised [N, H, W, C]; augmented: over mirror images, and shifts by a pixel both ways."""

    def mirrored(batch: Tensor) -> Tensor:
        return (_logits(batch) + _logits(batch.flip(2))) / 2

    def _logits(batch: Tensor) -> Tensor:
        return logits_of(batch.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)).clone()

    found = []
    side = images.shape[1]
    for batch in images.split(EVAL_BATCH):
        if not augmented:
            found.append(_logits(batch))
            continue
        padded = pad(batch, 1)
        shifted = mirrored(padded[:, :side, :side]) + mirrored(padded[:, 2:, 2:])
        found.append(mirrored(batch) / 2 + shifted / 4)
    return torch.cat(found)


def train_recipe(
    name: str,
    data: Cifar,
    *,
    seed: int,
    compiled: bool = False,
    max_steps: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Result:
    """Trains once and measures on the test split.

    Args:
      name: of RECIPES.
      compiled: torch.compile, max-autotune on GPUs. What it costs is paid in a run on random labels before the clock
        starts; on CPUs without it there is no such run.
      max_steps: ends early, the schedule as of a whole run.
      progress: told of a line now and then.
    """
    recipe, where = RECIPES[name], device()
    dtype = torch.float16 if where.type == "cuda" else torch.float32
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(seed)
    model = recipe.make().to(where).to(memory_format=torch.channels_last)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.to(dtype)
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    mode = "max-autotune" if where.type == "cuda" else "default"
    compile_ = (lambda f: torch.compile(f, mode=mode, dynamic=False)) if compiled else (lambda f: f)
    logits_of = compile_(model.forward)

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images).float()
        return F.cross_entropy(logits, labels, label_smoothing=0.2, reduction="sum")

    loss_of = compile_(loss_of)

    def once(data: Cifar) -> tuple[float, float, int, float]:
        """(seconds, accuracy, steps, the last batch's loss) from the initial weights."""
        model.load_state_dict(initial)
        synchronise()
        start = time.perf_counter()
        images = normalise(data.train_images, dtype)
        with torch.no_grad():
            model.whiten.weight.copy_(whitening_filters(images[:5000]))
        augmented = Augmented(images)
        steps_per_epoch = len(images) // recipe.batch_size
        total_steps = math.ceil(steps_per_epoch * recipe.epochs)
        last_step = min(total_steps, max_steps or total_steps)
        del images
        optimizer = Optimizer(recipe, model, total_steps, steps_per_epoch)
        lookahead = None if recipe.muon else Lookahead(model)
        model.train()
        loss = torch.zeros(())
        for step in range(last_step):
            if step % steps_per_epoch == 0:
                epoch_images = augmented.epoch(step // steps_per_epoch)
                order = torch.randperm(len(epoch_images), device=where)
            chosen = order[step % steps_per_epoch * recipe.batch_size :][: recipe.batch_size]
            optimizer.before(step)
            if compiled:
                torch.compiler.cudagraph_mark_step_begin()
            loss = loss_of(epoch_images[chosen].permute(0, 3, 1, 2), data.train_labels[chosen])
            loss.backward()
            optimizer.step(step)
            done = step + 1
            if lookahead and done % 5 == 0:
                lookahead.update(0.95**5 * (done / total_steps) ** 3)
            if where.type == "cpu" and (done % 10 == 0 or done == last_step):  # on a GPU it would wait for the device
                seconds = time.perf_counter() - start
                progress(f"step {done}/{total_steps}  {seconds:.1f} s  loss {loss.item() / len(chosen):.4f}")
        if lookahead:
            lookahead.update(1.0)
        model.eval()
        predicted = predict(logits_of, normalise(data.test_images, dtype), augmented=True).argmax(1)
        accuracy = (predicted == data.test_labels).double().mean().item()
        synchronise()
        return time.perf_counter() - start, accuracy, last_step, loss.item() / recipe.batch_size

    compile_seconds = 0.0
    if compiled or where.type == "cuda":  # compiling, and cuDNN's choice of algorithms
        start = time.perf_counter()
        once(data.with_random_labels())
        compile_seconds = time.perf_counter() - start
        torch.manual_seed(seed)
    seconds, accuracy, steps, loss = once(data)
    plain = predict(logits_of, normalise(data.test_images, dtype), augmented=False).argmax(1)
    return Result(
        accuracy=accuracy,
        plain_accuracy=(plain == data.test_labels).double().mean().item(),
        seconds=seconds,
        compile_seconds=compile_seconds,
        steps=steps,
        train_loss=loss,
    )
