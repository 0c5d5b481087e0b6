"""Memory and arithmetic of one guided step at real size, counted without weights and without a GPU.

    python benchmarks/footprint.py [NAME ...]                 prints the pairs whose denoiser has that in its name
    python benchmarks/footprint.py --write docs/footprint.md

The step is the library's own: `sample` of one image, in one step, with one guide. The networks have tensors that know
their shapes alone (`footprint_networks`). Over the operations i that it comes to, forward and backward,

    peak  = weights + max_i (bytes of all storages alive after i)
    FLOPs = sum_i 2 x multiply-adds of i                             matrix products, convolutions, attentions

A storage counts once, however many tensors share it, and as long as one of them lives or is kept for the gradient.
"""

import argparse
import gc
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from footprint_networks import PAIRS, SHAPES, Pair
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from steersman.denoise import Denoiser
from steersman.guidance import Constant, Denoised, Guide, Noisy, TargetLogit, Wrt
from steersman.lab.profiling import peak_memory
from steersman.models.classifiers import Classifier, load_classifier
from steersman.models.denoisers import load_denoiser
from steersman.sampling import DDIM, sample

aten = torch.ops.aten
for name in ("", "_backward"):  # torch lacks a formula for the CPU's kernel; its arguments and products are the same
    flash = getattr(aten, f"_scaled_dot_product_flash_attention{name}")
    flop_registry.setdefault(getattr(aten, f"_scaled_dot_product_flash_attention_for_cpu{name}"), flop_registry[flash])

GIB = 2**30
CARD, PEAK, SHARE = "RTX 4090", 165.2, 0.4
"""A card, the TFLOP a second that its maker names for bfloat16, and the share of them that is assumed."""
STEPS = ("unguided", "x0_hat", "x_t", "through, recomputing")

ALONE = "DiT-XL/2 256"
REPEATED = 27 * (256 * 1152 + 1152 + 1152**2 + 1152 + 1001 * 1152)
"""Parameters of DiT-XL/2 that diffusers has once a block: the embedding of time and label, of which one serves."""

PAGE = f"""# Does it fit?

Memory and arithmetic of one guided step of one image, counted on shapes: no weights and no GPU took part.

```bash
python benchmarks/footprint.py --write docs/footprint.md    # or with parts of names, to print some rows
```

The step is the library's own `sample`, with networks at their real size whose tensors know their shapes alone; what is
alive is followed from operation to operation, forward and backward.

- **unguided**: no guide. **direct**: a guide with `wrt: x0_hat`, which never differentiates the denoiser.
  **through**: one that goes back through it. **through, recomputing**: the same after
  `denoiser.network.enable_gradient_checkpointing()`, so that the denoiser's blocks are computed again instead of kept.
  The classifier input is the denoised image, decoded where it is a latent; the noise-aware classifier sees the noisy
  one, and both gradients are the same.
- **The classifier** is fed as it was trained: ResNet-101 and CLIP see 224 pixels.
- **Attention** does not keep its matrix (fused kernels). **VAEs** recompute their blocks for the gradient; the library
  has them do so.
- **A larger batch** multiplies what is not weights, but hardly the VAE's part, which takes images one at a time.
- **Prompts**: Stable Diffusion, SDXL, SD3 and Flux are called by an adapter in the benchmark, which tells them what
  their pipelines do; guiding, decoding and stepping are the library's. The denoiser is asked about the prompt alone, or
  with classifier-free guidance about two images at a time; Flux dev has its guidance built in.

## Memory

GiB at the worst moment in bfloat16, weights included: the denoiser's, the classifier's, and the whole VAE's. Float32
takes twice as much of everything (`--dtype float32`). A card sold with 24 GB has 24 GiB. CUDA's own memory, work spaces
of convolutions and the allocator's gaps come on top: leave some of it free. Text encoders are asked before sampling and
are not in it; T5-XXL of SD3 and Flux takes about 9 GiB more if it stays.

{{memory}}

## Arithmetic

TFLOP: twice the multiply-adds of matrix products, convolutions and attentions. **Seconds are computed, not measured**:
TFLOP at {SHARE:.0%} of the {PEAK} TFLOP a second that an {CARD} does in bfloat16 (tensor cores without sparsity,
NVIDIA's Ada whitepaper). An A100 does 312 (its data sheet), and at the same share takes {PEAK / 312:.2f} of the time.
The share is an assumption, good for comparing rows; small images leave more of a card idle.

{{arithmetic}}

## How good the count is

{{checks}}
"""


CHECKS = """{published}

Published parameters: the networks' papers and model cards; multiply-adds: Peebles & Xie (2023), an unguided step being
one forward. diffusers' DiT has the embedding of time and label in each of its 28 blocks: without the 27 repeats,
{repeated:.1f}, it is {alone:.1f}.

The bundled pair, really run on a CPU in float32: the peak of a step without weights, beside what torch's profiler saw
allocated, in which is what an operation takes for itself.

{allocated}

Counted on shapes and on values, bytes and FLOPs are the same (`tests/test_footprint.py`, on small networks)."""


class Counted(NamedTuple):
    """What a step takes.

    Attributes:
        peak: The most bytes that were alive at once, weights not among them.
        flop: Twice its multiply-adds.
    """

    peak: int
    flop: int


class Counting(TorchDispatchMode):
    """Follows which storages are alive, and counts FLOPs.

    Args:
        known: Tensors whose storages are not counted: the weights.

    Attributes:
        alive: Bytes now.
        peak: The most so far.
        flop: The FLOPs so far.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.sizes = {each.untyped_storage()._cdata: 0 for each in known}
        self.alive = self.peak = self.flop = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and counts it."""
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.flop += formula(*args, **(kwargs or {}), out_val=out)
        for each in tree_leaves(out):
            if isinstance(each, Tensor):
                self._hold(each.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.alive += storage.nbytes()
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.alive -= self.sizes.pop(key)


def networks(denoiser: Any, classifier: Classifier) -> Iterator[nn.Module]:
    """Yields the networks of a pair."""
    yield denoiser.network
    if (vae := getattr(denoiser, "vae", None)) is not None:
        yield vae
    yield classifier.network


def tensors(network: nn.Module) -> list[Tensor]:
    """Returns a network's weights and buffers."""
    return [*network.parameters(), *network.buffers()]


def step(
    denoiser: Denoiser,
    classifier: Classifier,
    wrt: Wrt | None,
    condition: Mapping[str, Any],
    *,
    noisy: bool = False,
) -> None:
    """Takes one step of one image; nothing is computed where the networks are of `SHAPES`.

    The strength is constant and the sampler DDIM, so that no value of a variance is asked for that a network learned.

    Args:
        denoiser: The denoiser.
        classifier: The classifier.
        wrt: The guide's; None for none.
        condition: What the denoiser is told.
        noisy: Whether the classifier sees the noisy image; else the denoised one.
    """
    weight = next(classifier.network.parameters())
    with SHAPES if isinstance(weight, FakeTensor) else nullcontext():
        noise = torch.zeros(1, *denoiser.shape)
    guide = Guide(
        objective=TargetLogit(classifier=classifier),
        input=Noisy() if noisy else Denoised(),
        wrt=wrt or "x0_hat",
        weight=Constant(),
    )
    guides, target = ([guide], 0) if wrt else ([], None)
    sample(denoiser, DDIM(), guides=guides, target=target, steps=1, noise=[noise], condition=condition)


def count(
    denoiser: Any, classifier: Classifier, wrt: Wrt | None, condition: Mapping[str, Any], *, noisy: bool = False
) -> Counted:
    """Returns what a `step` takes; the arguments are its own."""
    gc.collect()
    with Counting(each for network in networks(denoiser, classifier) for each in tensors(network)) as counting:
        step(denoiser, classifier, wrt, condition, noisy=noisy)
    return Counted(counting.peak, counting.flop)


def parameters(network: nn.Module) -> int:
    """Returns how many parameters a network has."""
    return sum(each.numel() for each in network.parameters())


def size(network: nn.Module) -> int:
    """Returns the bytes of a network's weights."""
    return sum(each.nbytes for each in tensors(network))


@cache
def measure(pair: Pair, dtype: torch.dtype) -> tuple[list[int], int, list[Counted]]:
    """Returns the parameters of a pair's networks, their bytes, and what the steps take, in the order of `STEPS`."""
    denoiser, classifier = pair.build(dtype)
    held = list(networks(denoiser, classifier))
    routes: tuple[Wrt | None, ...] = (None, "x0_hat") if pair.noisy else (None, "x0_hat", "x_t")
    counted = [count(denoiser, classifier, wrt, pair.condition, noisy=pair.noisy) for wrt in routes]
    if not pair.noisy:
        denoiser.network.enable_gradient_checkpointing()
        counted.append(count(denoiser, classifier, "x_t", pair.condition))
    return [parameters(each) for each in held], sum(map(size, held)), counted


def memory(pairs: Iterable[Pair], dtype: torch.dtype) -> str:
    """Returns the table of what is alive in a type."""
    rows = []
    for pair in pairs:
        numbers, weights, counted = measure(pair, dtype)
        peaks = _cells(f"{(weights + each.peak) / GIB:.2f}" for each in counted)
        rows.append([pair.denoiser, pair.classifier, f"{sum(numbers) / 1e6:,.1f}", f"{weights / GIB:.2f}", *peaks])
    return _markdown(["denoiser", "classifier", "parameters, 10⁶", "weights, GiB", *STEPS], rows)


def arithmetic(pairs: Iterable[Pair], dtype: torch.dtype) -> str:
    """Returns the table of FLOPs, which are the same in any type, and of the seconds computed from them."""
    rows = []
    for pair in pairs:
        _, _, counted = measure(pair, dtype)
        flops = _cells(f"{each.flop / 1e12:.3g}" for each in counted)
        seconds = _cells(_seconds(each.flop) for each in counted)
        rows.append([pair.denoiser, pair.classifier, *flops, " / ".join(seconds)])
    return _markdown(["denoiser", "classifier", "unguided, TFLOP", *STEPS[1:], f"seconds, computed, {CARD}"], rows)


def _seconds(flop: int) -> str:
    seconds = flop / 1e12 / PEAK / SHARE
    return f"{seconds:.2g}" if seconds >= 0.001 else "< 0.001"


def _cells(cells: Iterable[str]) -> list[str]:
    return [*cells, "–", "–"][: len(STEPS)]


def _markdown(names: list[str], cells: Iterable[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *cells))


def measured(wrt: Wrt | None) -> tuple[int, int]:
    """Returns the bytes that the bundled pair had allocated at the worst moment of a step, and those counted.

    Torch's profiler tells of all that its CPU allocator gives and takes back, within an operation too.
    """
    denoiser: Any = load_denoiser("zoo:sportballs")
    classifier = load_classifier("zoo:sportballs-mobilenet")
    step(denoiser, classifier, wrt, {})
    counted = count(denoiser, classifier, wrt, {})
    return peak_memory(lambda: step(denoiser, classifier, wrt, {})), counted.peak


def checks(pairs: Sequence[Pair]) -> str:
    """Returns what is known of the counts' truth: published figures, and a measurement."""
    kinds = {pair.denoiser: pair for pair in reversed(pairs) if not pair.denoiser.startswith("…")}
    kinds |= {ALONE: next(pair for pair in PAIRS if pair.denoiser == ALONE)}
    millions = {name: measure(pair, torch.bfloat16)[0][0] / 1e6 for name, pair in kinds.items()}
    published = [
        ("ADM 64", "296"),
        ("ADM 128", "422"),
        ("ADM 256", "554"),
        ("ADM 512", "559"),
        ("EDM 64", "296"),
        ("DiT-XL/2 256", "675"),
        ("Stable Diffusion 1.5, 512", "860"),
        ("SDXL, 1024", "2,600"),
        ("SD3 medium, 1024", "2,000"),
        ("Flux dev, 1024", "12,000"),
    ]
    forwards = [("ADM 256", "1,120"), ("ADM 512", "1,983"), ("DiT-XL/2 256", "118.6"), ("DiT-XL/2 512", "524.6")]
    cells = [[name, "parameters, 10⁶", f"{millions[name]:,.1f}", figure] for name, figure in published if name in kinds]
    for name, figure in forwards:
        if name not in kinds:
            continue
        flop = measure(kinds[name], torch.bfloat16)[2][0].flop
        cells.append([name, "10⁹ multiply-adds a forward", f"{flop / 2e9:,.1f}", figure])
    peaks = ((wrt or "unguided", *measured(wrt)) for wrt in (None, "x0_hat", "x_t"))
    allocated = ([name, *(f"{each / 2**20:.2f}" for each in both)] for name, *both in peaks)
    return CHECKS.format(
        published=_markdown(["denoiser", "of it", "counted", "published"], cells),
        repeated=REPEATED / 1e6,
        alone=millions[ALONE] - REPEATED / 1e6,
        allocated=_markdown(["step", "allocated, MiB", "counted, MiB"], allocated),
    )


def main() -> None:
    """Prints the tables, or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of denoisers' names; all if none is given")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="what is printed")
    parser.add_argument("--write", type=Path, help="the page")
    given = parser.parse_args()
    chosen = [pair for pair in PAIRS if not given.names or any(name in pair.denoiser for name in given.names)]
    if given.write:
        tables = {"memory": memory(chosen, torch.bfloat16), "arithmetic": arithmetic(chosen, torch.bfloat16)}
        page = PAGE.format(**tables, checks=checks(chosen))
        given.write.write_text(page, encoding="utf-8")
        return
    dtype = getattr(torch, given.dtype)
    print(memory(chosen, dtype), arithmetic(chosen, dtype), sep="\n\n")


if __name__ == "__main__":
    main()
