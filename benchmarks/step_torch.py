"""Training with torch: the same networks, layer by layer, and a loop in Python."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from step_works import CLASSES, EPOCHS, LEARNING_RATE, LOG_EVERY, MOMENTUM, Work, make_batch
from torch import nn


def train(work: Work, variant: str, steps: int, folder: Path, end_epoch: Callable[[int], object]) -> None:
    """Train until the process is killed.

    Args:
        work: what is trained.
        variant: "torch" or "torch_compile"; with "_bfloat16" under autocast.
        steps: of an epoch.
        folder: for logs and checkpoints.
        end_epoch: called with the number of trained parameters at the end of each epoch.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_flush_denormal(True)  # as TensorFlow does
    images, labels = map(torch.from_numpy, make_batch(work))
    images, labels = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last), labels.long()
    model = NETWORKS[work.network](work).to(memory_format=torch.channels_last)
    forward = torch.compile(model) if variant.startswith("torch_compile") else model
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, MOMENTUM, fused=True)
    precision = torch.autocast("cpu", torch.bfloat16, enabled=variant.endswith("_bfloat16"))

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        """Train one step; return the loss, and the logits [B, K]."""
        optimizer.zero_grad()
        with precision:
            logits = forward(images)
            loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return loss.detach(), logits.detach()

    run_epoch = _make_ordinary_epoch(model, optimizer, step, labels, steps, folder) if work.ordinary else None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    while True:
        if run_epoch:
            run_epoch()
        else:
            for _ in range(steps):
                step()
        end_epoch(parameters)


def _make_ordinary_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    labels: torch.Tensor,
    steps: int,
    folder: Path,
) -> Callable[[], None]:
    """Return a function that trains an epoch with loss and accuracy, a schedule, log lines and a checkpoint."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    file = open(folder / "metrics.jsonl", "a", encoding="utf-8", buffering=1)

    def run() -> None:
        loss_sum, matches = torch.zeros(()), torch.zeros((), dtype=torch.long)
        for number in range(1, steps + 1):
            loss, logits = step()
            schedule.step()
            loss_sum += loss
            matches += (logits.argmax(1) == labels).sum()
            if number % LOG_EVERY == 0:
                means = {"loss": loss_sum.item() / number, "accuracy": matches.item() / (number * len(labels))}
                [rate] = schedule.get_last_lr()
                file.write(json.dumps({"step": number, "learning_rate": rate, **means}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        torch.save(state, folder / "checkpoint.pt")

    return run


# --- networks ---------------------------------------------------------------------------------------------------------


class Scale(nn.Module):
    """Images uint8 to float32, 0..1."""

    def forward(self, images):
        return images.float() / 255


def _mlp(work: Work) -> nn.Module:
    height, width, channels = work.image_shape
    units = [height * width * channels, *[work.options["width"]] * work.options["depth"]]
    hidden = [layer for pair in zip(units, units[1:], strict=False) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(Scale(), nn.Flatten(), *hidden, nn.Linear(units[-1], CLASSES))


def _lenet5(work: Work) -> nn.Module:
    return nn.Sequential(
        Scale(),
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        *(nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU()),
        nn.Linear(84, CLASSES),
    )


def _vgg16(work: Work) -> nn.Module:
    """Return VGG-16 with batch normalization for images of 32 pixels, of which one remains."""
    layers: list[nn.Module] = [Scale()]
    channels = 3
    for filters, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            layers += nn.Conv2d(channels, filters, 3, padding=1), nn.BatchNorm2d(filters), nn.ReLU()
            channels = filters
        layers.append(nn.MaxPool2d(2))
    width = work.options["width"]
    layers.append(nn.Flatten())
    for units in (512, width):
        layers += nn.Linear(units, width), nn.ReLU(), nn.Dropout(0.5)
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def _local_response_normalization() -> nn.Module:
    return nn.LocalResponseNorm(5, alpha=5e-4, k=2.0)  # its alpha is divided by the 5 channels


def _alexnet(work: Work) -> nn.Module:
    """Return the paper's AlexNet for images of 64 pixels, whose convolutions leave 15, 7 and 3, and pool5 one."""
    return nn.Sequential(
        Scale(),
        *(nn.ZeroPad2d((0, 3, 0, 3)), nn.Conv2d(3, 96, 11, 4), nn.ReLU()),
        *(_local_response_normalization(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU()),
        *(_local_response_normalization(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        nn.Flatten(),
        *(nn.Linear(256, 4096), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(4096, CLASSES),
    )


def _googlenet(work: Work) -> nn.Module:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        Scale(),
        *(nn.Conv2d(3, 64, 7, 2, padding=3), nn.ReLU(), pool(), _local_response_normalization()),
        *(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 192, 3, padding=1), nn.ReLU()),
        *(_local_response_normalization(), pool()),
        *(Inception(192, 64, 96, 128, 16, 32, 32), Inception(256, 128, 128, 192, 32, 96, 64), pool()),
        *(Inception(480, 192, 96, 208, 16, 48, 64), Inception(512, 160, 112, 224, 24, 64, 64)),
        *(Inception(512, 128, 128, 256, 24, 64, 64), Inception(512, 112, 144, 288, 32, 64, 64)),
        *(Inception(528, 256, 160, 320, 32, 128, 128), pool()),
        *(Inception(832, 256, 160, 320, 32, 128, 128), Inception(832, 384, 192, 384, 48, 128, 128)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.Linear(1024, CLASSES)),
    )


class Inception(nn.Module):
    """An inception block: four branches, one after another in the channels of the result.

    Args:
        channels: of the input.
        one: filters of the 1x1 branch.
        reduce_three, three: filters of the 3x3 branch and of the 1x1 convolution before it.
        reduce_five, five: the same of the 5x5 branch.
        pooled: filters of the 1x1 convolution after the pooling.
    """

    def __init__(
        self, channels: int, one: int, reduce_three: int, three: int, reduce_five: int, five: int, pooled: int
    ):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(channels, one, 1), nn.ReLU()),
                nn.Sequential(
                    *(nn.Conv2d(channels, reduce_three, 1), nn.ReLU()),
                    *(nn.Conv2d(reduce_three, three, 3, padding=1), nn.ReLU()),
                ),
                nn.Sequential(
                    *(nn.Conv2d(channels, reduce_five, 1), nn.ReLU()),
                    *(nn.Conv2d(reduce_five, five, 5, padding=2), nn.ReLU()),
                ),
                nn.Sequential(nn.MaxPool2d(3, 1, padding=1), nn.Conv2d(channels, pooled, 1), nn.ReLU()),
            ]
        )

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


NETWORKS = {"mlp": _mlp, "lenet5": _lenet5, "vgg16": _vgg16, "alexnet": _alexnet, "googlenet": _googlenet}
"""The networks of kpipe by name, as torch has them."""
