"""Our loop beside the loops that nrCG and EluCD released: the same networks, batch, steps and noise, in turn.

    python benchmarks/originals.py --nrcg CHECKOUT --elucd CHECKOUT [--steps 4] [--repeats 8] [--out FILE]

A checkout is a folder with the authors' repository, which is not a part of this one. Of nrCG the pipeline is imported
and called; of EluCD the diffusion, whose guidance is the function of the script that draws. Both get the bundled U-Net
in float32, as they are; ours runs so too, with what ``dtype: auto`` picks, with that and checkpointing, and with what
``auto-float32`` picks. Each loop has a process of its own, so that none inherits what another did to the memory
allocator; ours has it keep what is freed, as the command line does, and the first row is without that. At the last
step, of variance zero, theirs take a gradient that moves nothing; so does ours here, since few steps stand for many.
Printed of each are

    faster    the median over the repeats of their seconds over ours, taken in turn; and of processor seconds
    differs   the largest difference of a pixel, images in [-1, 1]
    memory    bytes that are allocated at the worst moment, above the networks; as a share of theirs
"""

import argparse
import ast
import contextlib
import copy
import io
import json
import multiprocessing
import sys
import textwrap
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from steersman.guidance import Step
from steersman.lab.placement import choose_placement
from steersman.lab.profiling import keep_freed, peak_memory, timed
from steersman.lab.run import AUTO, Placement, Run
from steersman.lab.session import load_session
from steersman.models.classifiers import load_classifier
from steersman.models.denoisers import load_denoiser
from steersman.recipes import load_recipe
from steersman.sampling import sample
from steersman.schedule import VP

GUIDE, TARGET, NULL = "zoo:sportballs-mobilenet", 0, 4
MIB = 2**20

Draw = Callable[[], Tensor]


def nrcg(checkout: Path, draws: list[Tensor]) -> Draw:
    """Returns nrCG's own loop: its pipeline, its guidance, its moving average."""
    sys.path.insert(0, str(checkout))
    for unused in ("regex", "wandb", "pandas"):
        sys.modules.setdefault(unused, types.ModuleType(unused))
    sys.modules["regex"].T = None  # pyright: ignore[reportAttributeAccessIssue]
    from diffusers import DDPMScheduler
    from pipeline.ClassifierWrapper import ClassifierWrapper  # pyright: ignore[reportMissingImports]
    from pipeline.Guidance import EMA, DiffusionGuidance  # pyright: ignore[reportMissingImports]
    from pipeline.GuidedPipeline import GuidedDDPMPipeline  # pyright: ignore[reportMissingImports]

    count, steps = len(draws[0]), len(draws)
    shape = tuple(draws[0].shape)
    wrapper = ClassifierWrapper(load_classifier(GUIDE).network, "multiclass")
    wrapper.initialize(device="cpu", precision=torch.float32)
    pipe = GuidedDDPMPipeline(_unlabelled(), DDPMScheduler(prediction_type="v_prediction", timestep_spacing="leading"))
    pipe.set_progress_bar_config(disable=True)
    import diffusers.schedulers.scheduling_ddpm as scheduling
    import pipeline.GuidedPipeline as own  # pyright: ignore[reportMissingImports]

    def draw() -> Tensor:
        with contextlib.redirect_stdout(io.StringIO()):
            average = EMA(shape, "cpu", 0.99, False)
            target = wrapper.extend_target_classes(TARGET, count)
            pipe.set_guidance(DiffusionGuidance(shape, wrapper, target, SCALE, True, torch.float32, average))
        rest = iter(draws)
        scheduling.randn_tensor = own.randn_tensor = lambda *_, **__: next(rest)
        with torch.enable_grad():
            _, images = pipe(batch_size=count, num_inference_steps=steps, return_dict=False, with_grad=True)
        return images

    return draw


def elucd(checkout: Path, draws: list[Tensor]) -> Draw:
    """Returns EluCD's own loop: its diffusion, and the guidance of the script that draws with it."""
    sys.path.insert(0, str(checkout / "DDPM"))
    from guided_diffusion import gaussian_diffusion as own  # pyright: ignore[reportMissingImports]
    from guided_diffusion.script_util import create_gaussian_diffusion  # pyright: ignore[reportMissingImports]

    count, steps = len(draws[0]), len(draws)
    network, schedule = _unlabelled(), VP.linear()
    diffusion = create_gaussian_diffusion(
        steps=1000, learn_sigma=False, sigma_small=True, timestep_respacing=str(steps)
    )
    guide = load_classifier(GUIDE).network
    args = types.SimpleNamespace(classifier_scale=1.0, joint_temperature=1.0, margin_temperature_discount=0.5)
    guidance = _nested(
        checkout / "DDPM/scripts/classifier_sample.py", "design_cond_fn", {"th": torch, "resnet": guide, "args": args}
    )
    label = torch.full((count,), TARGET)

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The network predicts v; the diffusion wants the noise."""
        level = schedule.at_time(float(t[0]))
        return level.alpha.float() * network(x, t).sample + level.sigma.float() * x

    def draw() -> Tensor:
        rest = iter(draws[1:])
        own.th = _Replaced(torch, randn_like=lambda x: next(rest, torch.zeros_like(x)))
        return diffusion.p_sample_loop(
            model,
            tuple(draws[0].shape),
            gamma_factor=0.3,
            noise=draws[0],
            model_kwargs={"y": label},
            cond_fn=guidance,
            device="cpu",
        ).clamp(-1, 1)

    return draw


class _Replaced:
    """A module with some of its names replaced."""

    def __init__(self, module: Any, **names: Any):
        self.__dict__.update(names)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def _nested(path: Path, name: str, names: dict[str, Any]) -> Any:
    """Returns a function that is defined inside another, of the checkout's source."""
    source = path.read_text()
    (node,) = [each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.FunctionDef) and each.name == name]
    exec(compile(textwrap.dedent(ast.get_source_segment(source, node, padded=True) or ""), str(path), "exec"), names)
    return names[name]


def _unlabelled() -> torch.nn.Module:
    """Returns the bundled U-Net as an unconditional one, for loops that tell it no label."""
    network = copy.deepcopy(load_denoiser("zoo:sportballs").network)
    forward = network.forward

    def unlabelled(x: Tensor, t: Any, *_: Any, **__: Any) -> Any:
        return forward(x, t, class_labels=torch.full((len(x),), NULL))

    network.forward = unlabelled
    return network


def ours(run: Run, draws: list[Tensor]) -> Draw:
    """Returns our loop."""
    session = load_session(run)
    session.denoiser.schedule = VP.linear()  # theirs knows no other

    def draw() -> Tensor:
        return sample(
            session.denoiser,
            run.recipe.sampler(),
            guides=session.guides,
            target=TARGET,
            seeds=range(len(draws[0])),
            noise=draws,
            **run.recipe.sampling(),
        ).clamp(-1, 1)

    return draw


SCALE = 15
METHODS: dict[str, tuple[Callable[[Path, list[Tensor]], Draw], str, list[str]]] = {
    "nrcg": (nrcg, "nrcg", [f"scale={SCALE}", "sampling.spacing=leading"]),
    "elucd": (elucd, "elucd-ddpm/raw", ["smoothing=none"]),
}


class Loop:
    """A loop in a process of its own, told what to give: ``image``, ``seconds`` or ``memory``."""

    def __init__(self, build: Callable[[], Draw], *, keep: bool):
        spawn = multiprocessing.get_context("spawn")
        self._told, end = spawn.Pipe()
        spawn.Process(target=_serve, args=(build, keep, end), daemon=True).start()
        end.close()

    def __call__(self, what: str) -> Any:
        """Returns what it gives."""
        self._told.send(what)
        return self._told.recv()


def _serve(build: Callable[[], Draw], keep: bool, told: Connection) -> None:
    Step.varies = property(lambda _: True)  # pyright: ignore[reportAttributeAccessIssue]
    if keep:
        keep_freed()
    draw = build()
    gives = {"image": draw, "seconds": partial(timed, draw, "cpu"), "memory": partial(peak_memory, draw)}
    with contextlib.suppress(EOFError):
        while True:
            told.send(gives[told.recv()]())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    for name in METHODS:
        parser.add_argument(f"--{name}", type=Path)
    for name, value in {"steps": 4, "repeats": 8, "batch": 16}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    generator, found = torch.Generator().manual_seed(0), {}
    draws = [torch.randn(asked.batch, 3, 64, 64, generator=generator) for _ in range(asked.steps)]
    for name, (released, recipe, changes) in METHODS.items():
        if (checkout := getattr(asked, name)) is None:
            continue
        settings = load_recipe(recipe, [*changes, f"sampling.steps={asked.steps}"])
        run = Run(targets=(str(TARGET),), num=asked.batch, classifiers=(GUIDE,), judge=None, recipe=settings)
        whole = Placement(block=asked.batch)
        rows = {"float32": replace(run, dtype="auto", placed={"denoiser": whole, "classifier": whole})}
        for dtype in AUTO:
            auto = choose_placement(replace(run, dtype=dtype))
            shown = (f"{part} {lies.dtype} {lies.layout} by {lies.block}" for part, lies in auto.placed.items())
            rows[f"{dtype}: {'; '.join(shown)}"] = auto
            if name == "nrcg" and dtype == "auto":
                rows["auto, recomputed"] = replace(auto, recompute=True)
        print(f"{name}: {asked.steps} steps of {asked.batch} images, {torch.get_num_threads()} threads")
        theirs = Loop(partial(released, checkout, draws), keep=False)
        loops = {"float32, nothing kept": Loop(partial(ours, rows["float32"], draws), keep=False)}
        loops |= {key: Loop(partial(ours, row, draws), keep=True) for key, row in rows.items()}
        found[name] = compare(theirs, loops, asked.repeats)
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1))


def compare(theirs: Loop, rows: dict[str, Loop], repeats: int) -> dict[str, dict[str, float]]:
    """Prints a line a row, and returns its numbers."""
    image, peak = theirs("image"), theirs("memory")
    print(f"  theirs: {peak / MIB:.0f} MiB")
    found, times = {}, {key: [] for key in rows}
    differs = {key: float((draw("image") - image).abs().max()) for key, draw in rows.items()}
    for place in range(repeats):
        for key, draw in rows.items():
            order = (theirs, draw) if place % 2 == 0 else (draw, theirs)
            seconds = {each: each("seconds") for each in order}
            times[key].append([first / own for first, own in zip(seconds[theirs], seconds[draw], strict=True)])
    for key, draw in rows.items():
        wall, cpu = zip(*times[key], strict=True)
        memory = draw("memory") / peak
        found[key] = {"faster": median(wall), "least": min(wall), "most": max(wall), "cpu": median(cpu)}
        found[key] |= {"differs": differs[key], "memory": memory}
        print(
            f"  {key}: {median(wall):.2f} times as fast ({min(wall):.2f} to {max(wall):.2f} in {repeats}; "
            f"{median(cpu):.2f} of processor seconds), differs by {differs[key]:.1e}, memory {memory:.2f}"
        )
    return found


if __name__ == "__main__":
    main()
