"""The training loop of all networks here: AdamW or SGD, warm-up and decay, mixed precision, exact resumption.

Everything random in step k follows from ``(seed, k)`` alone: which images, which noise. So a run that was killed goes
on from its last checkpoint as if nothing had happened; the state is the weights, their average, the optimiser's moments
and k.
"""

import math
import os
import pickle
import shlex
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.optim.swa_utils import AveragedModel, update_bn
from torch.utils.data import DataLoader, Dataset, Sampler

from steersman.errors import InputError, unknown
from steersman.files import replacing
from steersman.lab.stop import Stop, Stopped
from steersman.models.checkpoint import check_archive
from steersman.typed import finite

__all__ = ["Batch", "Loss", "Training", "first_console", "fit", "flipped", "plan", "recalibrate"]
__all__ += ["seconds_spent", "shifted", "usage"]

CHECKPOINT = "checkpoint.pt"
PROGRESS_SECONDS = 20.0
LOST = 50  # steps in a row without a finite gradient, after which no later one will have one
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
        compile: Whether torch.compile compiles the network, which takes minutes at first.
        minutes: End after so many minutes, if the images are not all shown by then; the same command goes on for as
            many. None for no limit. In one process only.
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
    compile: bool = False
    minutes: float | None = None
    workers: int = 0
    seed: int = 0
    save_seconds: float = 300.0

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"minutes must be above 0, got {self.minutes}")
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


def flipped(images: Float[Tensor, "B C H W"], generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Returns the images, of which each is mirrored left to right with probability 1/2."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(3), images)


def shifted(images: Float[Tensor, "B C H W"], most: int, generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """Returns the images moved by up to so many pixels along each axis; what comes in is the image's reflection."""
    count, _, height, width = images.shape
    down, right = torch.randint(2 * most + 1, (2, count, 1), generator=generator)
    rows, columns = ((start + torch.arange(size)).to(images.device) for start, size in ((down, height), (right, width)))
    padded = pad(images, (most,) * 4, mode="reflect")
    image = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class _Batches(Sampler[list[int]]):
    """The indices of step k, k + 1, …: a new permutation each epoch, each from the seed and the epoch."""

    def __init__(self, size: int, training: Training, start: int) -> None:
        self.size, self.training, self.start = size, training, start

    def __len__(self) -> int:
        return self.training.steps - self.start

    def __iter__(self) -> Iterator[list[int]]:
        @lru_cache(maxsize=1)
        def order(epoch: int) -> Tensor:
            return torch.randperm(self.size, generator=_generator(self.training.seed, "order", epoch))

        batch = self.training.batch_size
        for step in range(self.start, self.training.steps):
            places = range(step * batch, (step + 1) * batch)
            yield [int(order(place // self.size)[place % self.size]) for place in places]


def _generator(seed: int, use: Use, *key: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(seed, use, *key))


def _seed(seed: int, use: Use, *key: int) -> int:
    """Returns 32 bits: a CPU generator takes no more, and leaves out what is above them."""
    return int(np.random.SeedSequence([seed, get_args(Use).index(use), *key]).generate_state(1)[0])


def first_console() -> Console:
    """Returns the console of the first process; the others print nothing."""
    return Console(quiet=os.environ.get("RANK", "0") != "0", soft_wrap=True, highlight=False, markup=False)


def plan(data: Dataset, classes: Sequence[str], network: nn.Module, training: Training) -> str:
    """Returns a line on what is trained, on what, and for how long."""
    _, height, width = data[0][0].shape
    weights = sum(weight.numel() for weight in network.parameters())
    return (
        f"{len(data):,} images of {width} by {height} pixels, "  # pyright: ignore[reportArgumentType]
        f"{f'{len(classes)} classes' if classes else 'no classes'}; a network of {weights:,} weights; "
        f"{training.steps:,} steps of {training.batch_size} images"
    )


def usage(*words: object) -> str:
    """Returns the line that says how to draw with what was trained."""
    return f"draw with it: {shlex.join(['steersman', 'sample', *map(str, words)])}"


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
) -> int:
    """Trains a network in place, from the folder's checkpoint where it has one, and returns how many images it saw.

    A step whose gradient is not finite leaves the weights as they are; the checkpoint never holds any that are not.
    """
    backend = "inductor" if training.compile else None
    cpu = not torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision=training.precision, cpu=cpu, dynamo_backend=backend)
    if training.minutes is not None and accelerator.num_processes > 1:
        raise InputError(f"minutes must be left out in several processes, whose clocks differ, got {training.minutes}")
    main, checkpoint = accelerator.is_main_process, out / CHECKPOINT
    console = console or first_console()
    out.mkdir(parents=True, exist_ok=True)
    network.to(accelerator.device)
    if training.channels_last:
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    state = _State(network, training)
    state.load(checkpoint)
    start = state.step
    if start:
        console.print(f"going on from step {start} of {training.steps}")
    rates = torch.optim.lr_scheduler.LambdaLR(state.optimizer, partial(_rate, training), last_epoch=start - 1)
    model, optimizer, loader = accelerator.prepare(network, state.optimizer, _loader(data, training, start))

    def show() -> None:
        if preview is not None and main:
            console.print("drawing samples")
            preview(state.averaged().eval(), state.step * training.batch_size)
            network.train()

    network.train()
    running = torch.zeros((), device=accelerator.device)
    began = told = saved = shown = time.monotonic()
    told_at, lost = start, 0
    with Stop(launched=accelerator.num_processes > 1, quiet=not main) as stop:
        for step, (images, labels) in enumerate(_loaded(loader), start):
            generator = _generator(training.seed, "loss", accelerator.process_index, step)
            # Dropout and random transforms draw from the global generator, not from the batch's.
            torch.manual_seed(_seed(training.seed, "network", accelerator.process_index, step))
            value = loss(model, Batch(images, labels, generator))
            accelerator.backward(value)
            sound = accelerator.clip_grad_norm_(network.parameters(), training.clip).isfinite()
            if sound or accelerator.scaler is not None:  # a scaler skips the step itself, and scales by less
                optimizer.step()
            optimizer.zero_grad()
            lost = 0 if sound else lost + 1
            if lost == LOST:
                raise InputError(_diverged(training, state, checkpoint))
            rates.step()
            state.stepped()
            # The mean of all losses at first, then of about the last hundred.
            weight = min(0.99, (step - start) / (step - start + 1))
            running = torch.where(sound, torch.lerp(value.detach().float(), running, weight), running)
            now, left = time.monotonic(), training.steps - state.step
            if training.minutes is not None and now - began > 60 * training.minutes:
                left = 0
            if now - told > PROGRESS_SECONDS or not left:
                speed = (state.step - told_at) / (now - told)
                console.print(
                    f"{state.step * training.batch_size:>9,} of {training.images:,} images  loss {float(running):.4f}  "
                    f"{speed * training.batch_size:.0f} images/s  {left / speed / 60:.0f} min left"
                )
                told, told_at = now, state.step
            if main and (now - saved > training.save_seconds or stop or not left):
                state.save(checkpoint)
                saved = now
            if now - shown > preview_seconds:
                show()
                shown = now
            if stop and left:
                raise Stopped(
                    f"stopped after step {state.step} of {training.steps}, which is saved in {str(checkpoint)!r}; "
                    "the same command goes on from it",
                    stop.code or 1,
                )
            if not left:
                break
    if start < training.steps:
        show()
        console.print(f"trained for {(time.monotonic() - began) / 3600:.2f} hours since the start or the last restart")
    network.load_state_dict(state.averaged().state_dict())
    network.eval()
    return state.step * training.batch_size


def _diverged(training: Training, state: "_State", checkpoint: Path) -> str:
    kept = f"; weights from before them are in {str(checkpoint)!r}" if checkpoint.exists() else ""
    return (
        f"the gradients of {LOST} steps in a row, up to step {state.step + 1}, were not finite; try a --learning-rate "
        f"below {training.learning_rate:g}, or --precision no where it is fp16{kept}"
    )


class _State:
    """What a checkpoint holds: the weights, their average, the optimizer, the steps and seconds behind them."""

    def __init__(self, network: nn.Module, training: Training) -> None:
        self.network, self.step, self.seconds = network, 0, 0.0
        self.since = time.monotonic()
        weights = list(network.parameters())
        groups = [
            {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = (
            torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True)
            if training.optimizer == "sgd"
            else torch.optim.AdamW(groups, lr=training.learning_rate)
        )
        self.average = AveragedModel(network, multi_avg_fn=_mean_of(training.average)) if training.average else None

    def stepped(self) -> None:
        """Counts a step that the optimizer did."""
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(self.network)

    def averaged(self) -> Any:  # noqa: ANN401
        """Returns the network with averaged weights, or the network itself where they are not averaged."""
        return self.network if self.average is None else self.average.module

    def save(self, file: Path) -> None:
        state = {"step": self.step, "seconds": self.seconds + time.monotonic() - self.since}
        state |= {name: part.state_dict() for name, part in self._parts().items()}
        with replacing(file) as beside, beside.open("wb") as stream:  # to a path, torch does not say what was refused
            torch.save(state, stream)

    def load(self, file: Path) -> None:
        """Goes on from a checkpoint, if there is one."""
        if not file.exists():
            return
        check_archive(file)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.step, self.seconds = state["step"], state["seconds"]
        except (RuntimeError, KeyError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"checkpoint: {str(file)!r} does not fit these settings ({reason}); start in an empty folder"
            ) from error

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        parts = {"network": self.network, "optimizer": self.optimizer}
        return parts if self.average is None else parts | {"average": self.average}


def _mean_of(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], None]:
    """Returns the update of a moving average; it warms up, so that the first weights are soon forgotten."""

    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], count: Tensor) -> None:
        share = (1 + count) ** -0.75
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, share.clamp(min=1 - decay).to(average.dtype))

    return update


def _rate(training: Training, step: int) -> float:
    """Returns the learning rate of a step, as a share of its peak."""
    if step < training.warmup:
        return step / training.warmup
    passed = min(1.0, (step - training.warmup) / max(1, training.steps - training.warmup))
    return {"cosine": (1 + math.cos(math.pi * passed)) / 2, "linear": 1 - passed, "none": 1.0}[training.decay]


def seconds_spent(out: Path) -> float:
    """Returns how long the training in a folder took up to its last checkpoint, restarts left out."""
    return torch.load(out / CHECKPOINT, map_location="cpu", weights_only=True, mmap=True)["seconds"]


def _loader(data: Dataset, training: Training, start: int) -> DataLoader:
    """Returns the batches of a training from a step on."""
    batches = _Batches(len(data), training, start)  # pyright: ignore[reportArgumentType]
    return DataLoader(data, batch_sampler=batches, num_workers=training.workers, worker_init_fn=_leave_signals)


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

    def inputs() -> Iterator[Tensor]:
        for step, (images, labels) in enumerate(_loaded(_loader(data, training, start)), start):
            torch.manual_seed(_seed(training.seed, "statistics", step))
            yield shown(Batch(images, labels, _generator(training.seed, "statistics", step)))

    update_bn(inputs(), network, device)
    network.eval()
