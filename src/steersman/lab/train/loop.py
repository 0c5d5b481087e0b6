"""The training loop of all networks here: AdamW or SGD, warm-up and decay, mixed precision, exact resumption.

Everything random in step k follows from ``(seed, k)`` alone: which images, which noise. So a run that was killed goes
on from its last checkpoint as if nothing had happened; the state is the weights, their average, the optimiser's moments
and k.
"""

import math
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Dataset, Sampler

from steersman.errors import InputError, unknown
from steersman.files import replacing
from steersman.lab.stop import Stop, Stopped
from steersman.models.checkpoint import check_archive
from steersman.typed import finite

__all__ = ["Batch", "Loss", "Training", "fit", "recalibrate", "seconds_spent"]

CHECKPOINT = "checkpoint.pt"
RECALIBRATION = 100  # batches, whose mean and variance are those of thousands of images
CHOICES = {
    "decay": ("cosine", "linear", "none"),
    "optimizer": ("adamw", "sgd"),
    "precision": ("no", "bf16", "fp16"),
}


@dataclass(frozen=True, kw_only=True)
@finite
class Training:
    """How to train.

    Attributes:
        images: How many images to show in all, repeats counted.
        batch_size: Images a step, over all processes.
        learning_rate: The optimiser's, at its peak.
        warmup: Steps of linear warm-up.
        decay: How the learning rate falls after it: ``cosine`` or ``linear`` to zero at the last step, or ``none``.
            Without decay the averaged weights are usable at any time, so that a run may be stopped or continued.
        optimizer: ``adamw``, or ``sgd`` with Nesterov's momentum of 0.9.
        weight_decay: The optimiser's; not of biases and normalisations, which have one axis.
        clip: The largest norm of the gradient over all weights.
        average: The decay of the weights' moving average, or 0 for none; it warms up as ``1 - (1 + k)^(-3/4)``.
        precision: ``no`` for float32, ``bf16`` or ``fp16`` for mixed precision.
        channels_last: The memory layout; which is faster differs from machine to machine.
        workers: Processes that load data.
        seed: What all randomness follows from, 0 or more.
        save_seconds: A checkpoint is written this often, and at the end.
    """

    images: int
    batch_size: int = 64
    learning_rate: float = 1e-4
    warmup: int = 500
    decay: str = "cosine"
    optimizer: str = "adamw"
    weight_decay: float = 0.01
    clip: float = 1.0
    average: float = 0.0
    precision: str = "no"
    channels_last: bool = False
    workers: int = 0
    seed: int = 0
    save_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise InputError(f"seed must be at least 0, got {self.seed}")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)

    @property
    def steps(self) -> int:
        """How many steps that makes, the last one full too."""
        return -(-self.images // self.batch_size)


@dataclass(frozen=True)
class Batch:
    """One step's images in [-1, 1], their labels, and the generator of all else that is random in the step."""

    images: Float[Tensor, "B C H W"]
    labels: Tensor
    generator: torch.Generator


Network = TypeVar("Network", bound=nn.Module)
Loaded = TypeVar("Loaded")
Loss = Callable[[nn.Module, Batch], Tensor]
Use = Literal["order", "loss", "network", "statistics"]


class _Batches(Sampler[list[int]]):
    """The indices of step k, k + 1, …: a new permutation each epoch, each from the seed and the epoch."""

    def __init__(self, size: int, training: Training, start: int) -> None:
        self.size, self.training, self.start = size, training, start

    def __len__(self) -> int:
        return self.training.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        batch, epoch, order = self.training.batch_size, -1, torch.empty(0)
        for step in range(self.start, self.training.steps):
            indices = []
            for place in range(step * batch, (step + 1) * batch):
                if place // self.size != epoch:
                    epoch = place // self.size
                    order = torch.randperm(self.size, generator=_generator(self.training.seed, "order", epoch))
                indices.append(int(order[place % self.size]))
            yield indices


def _generator(seed: int, use: Use, *key: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(seed, use, *key))


def _seed(seed: int, use: Use, *key: int) -> int:
    """Returns 32 bits: a CPU generator takes no more, and leaves out what is above them."""
    return int(np.random.SeedSequence([seed, get_args(Use).index(use), *key]).generate_state(1)[0])


def fit(
    network: Network,
    data: Dataset,
    loss: Loss,
    training: Training,
    out: Path,
    *,
    preview: Callable[[Network, int], None] | None = None,
    preview_seconds: float = 900.0,
    console: Console | None = None,
) -> Network:
    """Trains a network in place, from the folder's checkpoint where it has one."""
    accelerator = Accelerator(mixed_precision=training.precision, cpu=not torch.cuda.is_available())
    console = console or Console(quiet=not accelerator.is_main_process)
    out.mkdir(parents=True, exist_ok=True)
    if training.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    optimizer = _optimizer(network, training)
    average = (
        EMAModel(network.parameters(), decay=training.average, use_ema_warmup=True, power=3 / 4)
        if training.average
        else None
    )
    start, spent = _resume(out / CHECKPOINT, network, optimizer, average)
    if start:
        console.print(f"going on from step {start} of {training.steps}")
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_rate, training), last_epoch=start - 1)
    loader = DataLoader(
        data,
        batch_sampler=_Batches(len(data), training, start),  # pyright: ignore[reportArgumentType]
        num_workers=training.workers,
        worker_init_fn=_leave_signals,
    )
    model, optimizer, loader = accelerator.prepare(network, optimizer, loader)
    if average is not None:
        average.to(accelerator.device)

    def save(step: int) -> None:
        if accelerator.is_main_process:
            _save(out / CHECKPOINT, step, spent + time.monotonic() - began, network, optimizer, average)

    def show(step: int) -> None:
        if preview is not None and accelerator.is_main_process:
            with _averaged(network, average):
                preview(network, step * training.batch_size)

    network.train()
    running = torch.zeros((), device=accelerator.device)
    began = saved = told = shown = time.monotonic()
    since = start
    with Stop(launched=accelerator.num_processes > 1, quiet=not accelerator.is_main_process) as stop:
        for step, (images, labels) in enumerate(_loaded(loader), start):
            generator = _generator(training.seed, "loss", accelerator.process_index, step)
            # Dropout and random transforms draw from the global generator, not from the batch's.
            torch.manual_seed(_seed(training.seed, "network", accelerator.process_index, step))
            value = loss(model, Batch(images, labels, generator))
            accelerator.backward(value)
            accelerator.clip_grad_norm_(network.parameters(), training.clip)
            optimizer.step()
            optimizer.zero_grad()
            rates.step()
            if average is not None:
                average.step(network.parameters())
            running = torch.lerp(value.detach().float(), running, min(0.99, (step - start) / (step - start + 1)))
            now = time.monotonic()
            if now - told > 20 or step + 1 == training.steps:
                speed = (step + 1 - since) / (now - told)
                left = (training.steps - step - 1) / speed / 60
                console.print(
                    f"{(step + 1) * training.batch_size:>9,} of {training.images:,} images  loss {float(running):.4f}  "
                    f"{speed * training.batch_size:.0f} images/s  {left:.0f} min left"
                )
                told, since = now, step + 1
            if now - saved > training.save_seconds:
                save(step + 1)
                saved = now
            if now - shown > preview_seconds:
                show(step + 1)
                shown = now
            if stop and step + 1 < training.steps:
                save(step + 1)
                raise Stopped(
                    f"stopped after step {step + 1} of {training.steps}, which is saved in {str(out / CHECKPOINT)!r}; "
                    "the same command goes on from it",
                    stop.code or 1,
                )
    if start < training.steps:
        save(training.steps)
        show(training.steps)
        console.print(f"trained for {(time.monotonic() - began) / 3600:.2f} hours since the start or the last restart")
    if average is not None:
        average.copy_to(network.parameters())
    return network.eval()


def _loaded(loader: Iterable[Loaded]) -> Iterator[Loaded]:
    """Yields a loader's batches; what one of its processes refuses is refused as here, without that one's traceback."""
    try:
        yield from loader
    except InputError as error:
        name = f"\n{InputError.__module__}.{InputError.__qualname__}: "
        raise InputError(str(error).rpartition(name)[2].strip()) from error


def _leave_signals(_: int) -> None:
    """Leaves an interruption of the terminal, which reaches the processes that load data too, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def recalibrate(
    network: nn.Module, data: Dataset, shown: Callable[[Batch], Float[Tensor, "B C H W"]], training: Training
) -> None:
    """Measures the statistics of batch normalisation anew, in place, for the weights that a network ends with.

    The running averages lag behind the weights: far in a short training, and always where the weights are averages of
    earlier ones. Here each becomes the plain mean over batches of the training, at most `RECALIBRATION` of them. A
    network without batch normalisation stays as it is.
    """
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return
    device = next(network.parameters()).device
    start = max(0, training.steps - RECALIBRATION)
    batches = _Batches(len(data), training, start)  # pyright: ignore[reportArgumentType]
    loader = DataLoader(data, batch_sampler=batches, num_workers=training.workers, worker_init_fn=_leave_signals)

    def inputs() -> Iterator[Tensor]:
        for step, (images, labels) in enumerate(_loaded(loader), start):
            torch.manual_seed(_seed(training.seed, "statistics", step))
            yield shown(Batch(images, labels, _generator(training.seed, "statistics", step)))

    update_bn(inputs(), network, device)
    network.eval()


def _optimizer(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    weights = list(network.parameters())
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=training.learning_rate)


def _rate(training: Training, step: int) -> float:
    """Returns the learning rate of a step, as a share of its peak."""
    if step < training.warmup:
        return step / training.warmup
    passed = (step - training.warmup) / max(1, training.steps - training.warmup)
    match training.decay:
        case "cosine":
            return max(0.0, (1 + math.cos(math.pi * passed)) / 2)
        case "linear":
            return max(0.0, 1 - passed)
    return 1.0


class _averaged:  # noqa: N801
    """Inside, the network holds its averaged weights and is in evaluation mode."""

    def __init__(self, network: nn.Module, average: EMAModel | None) -> None:
        self.network, self.average = network, average

    def __enter__(self) -> None:
        self.network.eval()
        if self.average is not None:
            self.average.store(self.network.parameters())
            self.average.copy_to(self.network.parameters())

    def __exit__(self, *_: object) -> None:
        if self.average is not None:
            self.average.restore(self.network.parameters())
        self.network.train()


def seconds_spent(out: Path) -> float:
    """Returns how long the training in a folder took up to its last checkpoint, restarts left out."""
    return torch.load(out / CHECKPOINT, map_location="cpu", weights_only=True, mmap=True).get("seconds", 0.0)


def _save(
    file: Path,
    step: int,
    seconds: float,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: EMAModel | None,
) -> None:
    state = {"step": step, "seconds": seconds, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
    if average is not None:
        state["average"] = average.state_dict()
    with replacing(file) as beside, beside.open("wb") as stream:  # to a path, torch does not say what was refused
        torch.save(state, stream)


def _resume(
    file: Path, network: nn.Module, optimizer: torch.optim.Optimizer, average: EMAModel | None
) -> tuple[int, float]:
    """Loads a checkpoint where there is one, and returns the steps and the seconds that it has behind it."""
    if not file.exists():
        return 0, 0.0
    check_archive(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
    except (RuntimeError, KeyError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"checkpoint: {str(file)!r} does not fit these settings ({reason}); start in an empty folder"
        ) from error
    return state["step"], state.get("seconds", 0.0)
