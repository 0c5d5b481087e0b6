"""Text-to-image pipelines of diffusers as denoisers, with the conditioning that the pipeline gives its network.

Before the first step the pipeline is called once for a prompt (`steersman.pipelines.network`); what it gives its
network then goes, row by row, with every ``x_t``. With W the classifier-free scale (Ho & Salimans 2022),

    x0_hat = x0_hat(negative prompt) + W (x0_hat(prompt) - x0_hat(negative prompt)),

where the negative prompt is by default the pipeline's own: an empty one, or zeros. So families differ in nothing here.
A distilled scale, which the network itself takes (Flux's guidance), is the pipeline's default.

Pipelines come from folders as diffusers saves them, from the hub, and from one file of weights under the names of the
original code, as authors and trainers release them; of such a file the rest is read from a folder of that pipeline.
Only safetensors are read, and no code of a folder or of the hub is run: a pipeline is one of those that are known, its
parts are classes of diffusers and transformers. What judges or shows images is not loaded.
"""

import inspect
import threading
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from diffusers.utils.import_utils import is_bs4_available, is_ftfy_available
from jaxtyping import Float, Int
from pydantic import PositiveInt
from safetensors import safe_open
from torch import Tensor, nn

from steersman import latent
from steersman.denoise import Parameterization, Prediction, check_condition, classifier_free, classifier_free_at_once
from steersman.errors import InputError, about, one_line
from steersman.files import regular, regular_below
from steersman.models import checkpoint
from steersman.models.denoisers.folder import PIPELINES, read_index
from steersman.models.denoisers.network import evaluated, predicted
from steersman.models.hub import check_whole, hushed, load_pretrained, quiet
from steersman.pipelines.network import Conditioning, layout_of, record
from steersman.schedule import Flow, Level, Schedule, from_diffusers, times
from steersman.typed import check_finite, typed

__all__ = ["PipelineDenoiser", "fetch", "load_pipeline"]

KNOWN = ("prompt", "negative_prompt", "cfg_scale", "unconditional")
CACHED = 16  # prompts
GUIDED = 2.0  # any scale at which a pipeline gives its network both rows

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
LIBRARIES = ("diffusers", "transformers")
VAE_PREFIXES = ("first_stage_model.", "vae.", "encoder.", "decoder.")
CONFIGURATION = ("*.json", "*.txt", "*.model")  # the files of a pipeline's folder beside weights


class PipelineDenoiser:
    """A text-to-image pipeline of latents as a denoiser; size is (height, width) in pixels, or the pipeline's own."""

    block: int | None = None  # images that the network gets at a time, None for the whole batch (`steersman.batching`)
    latent: bool = True
    prompted: bool = True
    classes: tuple[str, ...] = ()

    def __init__(self, pipe: Any, *, size: tuple[int, int] | None = None) -> None:  # noqa: ANN401
        self.pipe, self.size = pipe, size
        self.part = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
        self.network: Any = getattr(pipe, self.part).eval().requires_grad_(False)
        self.vae = latent.frozen(pipe.vae)
        self.parameters = inspect.signature(type(pipe).__call__).parameters
        self.scale = "true_cfg_scale" if "true_cfg_scale" in self.parameters else "guidance_scale"
        network = self.network.config
        distilled = network.get("guidance_embeds", "timestep_guidance_channels" in network)
        self.distilled = bool(distilled) and self.scale == "guidance_scale"  # then that is no classifier-free scale
        self.cache: dict[tuple[str, str | None, bool], Conditioning] = {}
        self.lock = threading.Lock()
        plain = self._conditioning("", None, guided=False)
        channels = latent.channels(self.vae.config)
        self.layout = layout_of(type(self.network).__name__, plain.sample, plain.values, channels)
        self.shape = tuple(self.layout.unpack(plain.sample).shape[1:])
        config = pipe.scheduler.config
        self.schedule: Schedule = from_diffusers(config, mu=plain.mu)
        self.learned_range = config.get("variance_type") == "learned_range"
        default = "flow_prediction" if isinstance(self.schedule, Flow) else "epsilon"
        self.parameterization: Parameterization = config.get("prediction_type", default)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "PipelineDenoiser":
        """Moves all parts, and returns self; one that is in the dtype already keeps what it has in another."""
        for part in self.pipe.components.values():
            if part is self.vae:
                latent.cast(part, device, dtype)
            elif isinstance(part, nn.Module):
                nn.Module.to(part, device=device, dtype=None if part.dtype == dtype else dtype)
        self.cache.clear()
        return self

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        level: Level,
        *,
        prompt: str | None = None,
        negative_prompt: str | None = None,
        cfg_scale: float = 1.0,
        unconditional: bool = False,
        label: Int[Tensor, " B"] | None = None,
        **_others: Any,  # noqa: ANN401
    ) -> Prediction:
        """Returns the prediction for noisy latents at a level, one for all or one for each."""
        check_finite("cfg_scale", cfg_scale)
        check_condition(label, 1, _others, classes=(), unconditional=True, known=KNOWN)
        if prompt is None:
            raise InputError("prompt must be a text, which may be empty, got none")
        guided = cfg_scale != 1 or unconditional
        if negative_prompt is not None and not guided:
            raise InputError(f"negative_prompt must come with a cfg_scale other than 1, got {negative_prompt!r}")
        given = self._conditioning(prompt, negative_prompt, guided=guided)
        conditional = torch.full((len(x_t),), given.conditional, device=x_t.device)
        if not guided:
            return self._predict(x_t, level, conditional, given)
        if given.separate is not None:
            prediction = self._predict(x_t, level, conditional, given)
            return classifier_free(prediction, self._predict(x_t, level, conditional, given.separate).x0_hat, cfg_scale)
        if given.unconditional is None:
            raise InputError(
                f"cfg_scale must be 1 and no weight difference, as {type(self.pipe).__name__} has no unconditional "
                f"model here, got {cfg_scale}"
            )
        rows = torch.cat([conditional, torch.full_like(conditional, given.unconditional)])
        return classifier_free_at_once(partial(self._predict, rows=rows, given=given), x_t, level, cfg_scale)

    def decode(self, x0: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Returns the images of latents."""
        return latent.decoded(self.vae, x0)

    def encode(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 H2 W2"]:
        """Returns the latents of images."""
        return latent.encoded(self.vae, images)

    def _predict(self, x_t: Tensor, level: Level, rows: Tensor, given: Conditioning) -> Prediction:
        def network(x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
            return self.layout.unpack(self.network(self.layout.pack(x), timestep=time, **given.rows(rows))[0])

        time = times(level, len(x_t), x_t.device, torch.float32) * given.time_scale
        output = evaluated(network, self.network.dtype, self.block, x_t, time, rows)
        return predicted(self.parameterization, x_t, output, level, learned_range=self.learned_range)

    def _conditioning(self, prompt: str, negative_prompt: str | None, *, guided: bool) -> Conditioning:
        """Returns the conditioning of a prompt, from the cache or from a call of the pipeline."""
        key = (prompt, negative_prompt, guided)
        with self.lock:
            if key not in self.cache:
                while len(self.cache) >= CACHED:
                    self.cache.pop(next(iter(self.cache)))
                self.cache[key] = self._recorded(*key)
            return self.cache[key]

    def _recorded(self, prompt: str, negative_prompt: str | None, guided: bool) -> Conditioning:
        call: dict[str, Any] = {"prompt": prompt}
        if not self.distilled:
            call[self.scale] = GUIDED if guided else 1.0
        if guided and negative_prompt is None and self.scale == "true_cfg_scale":
            negative_prompt = ""  # without one such a pipeline has no unconditional row
        if negative_prompt is not None:
            call["negative_prompt"] = negative_prompt
        if self.size is not None:
            call["height"], call["width"] = self.size
        if "use_resolution_binning" in self.parameters:
            call["use_resolution_binning"] = False
        if "clean_caption" in self.parameters and not (is_bs4_available() and is_ftfy_available()):
            call["clean_caption"] = False  # as the pipeline then does itself, with a long warning
        try:
            return record(self.pipe, self.part, **call)
        except Exception as error:  # of the pipeline's own code, which may lack a part or refuse a size
            name = type(self.pipe).__name__
            raise InputError(f"denoiser: {name} cannot be conditioned on {prompt!r} ({one_line(error)})") from error


def load_pipeline(
    path: Path, options: Mapping[str, str], *, device: torch.device | str, dtype: torch.dtype
) -> PipelineDenoiser:
    """Returns the denoiser of a folder, or of one file of weights, of one of the known pipelines.

    Options are ``height`` and ``width`` of the images, by default the pipeline's own; of a folder, the ``variant`` of
    its weights; of a file, ``config``, the pipeline's folder, by default that of the hub which diffusers takes for it.
    """
    one_file = not path.is_dir()
    if one_file and not path.is_file():
        raise InputError(f"denoiser: {str(path)!r} must be a file of a pipeline's weights, and is none")
    if one_file and "variant" in options:
        raise InputError(f"denoiser: {path} is one file, which has no variant; leave variant out")
    size, names = _size(options), frozenset[str]()
    if one_file:
        with about("denoiser", path), safe_open(regular(path), framework="pt") as file:
            names = frozenset(file.keys())
    with quiet(str(path), kind="denoiser"), hushed(logging), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the name torch_dtype, which all versions know
        folder = _configuration(path, options.get("config")) if one_file else path
        index = read_index(folder)
        if (name := index.get("_class_name")) not in PIPELINES:
            raise InputError(
                f"denoiser: config must be the folder of one of {', '.join(PIPELINES)}, got a {name} in {folder}"
            )
        build, classes, settings = getattr(import_module("diffusers"), name), _classes(folder, index), _unused(index)
        where: dict[str, Any] = {"local_files_only": True, "torch_dtype": dtype}
        with about("denoiser", path):
            regular_below(folder)
            for key, kind in classes.items():
                if not issubclass(kind, nn.Module) or (one_file and _in_file(key, kind, names)):
                    continue
                if one_file and not checkpoint.weights_size(folder / key):
                    raise InputError(f"{path} has no {key}, and {folder / key} has no weights; put them there")
                # loaded by itself, as only then the libraries tell what is missing, which they would draw
                settings[key], info = kind.from_pretrained(
                    folder / key,
                    use_safetensors=True,
                    output_loading_info=True,
                    variant=options.get("variant"),
                    **where,
                )
                check_whole(f"{key}: it", info)
            if one_file:
                # a number is counted where its network is built, and where it is filled
                room = 2 * (path.stat().st_size + sum(checkpoint.weights_size(folder / key) for key in classes))
                with checkpoint.no_larger_than(room):
                    pipe = build.from_single_file(str(path), config=str(folder), **settings, **where)
            else:
                pipe = build.from_pretrained(path, use_safetensors=True, **settings, **where)
            for key, part in pipe.components.items():
                if isinstance(part, nn.Module):
                    tensors = part.state_dict()
                    # what a file lacks, diffusers leaves without values
                    check_whole(f"{key}: it", {"missing_keys": [name for name, x in tensors.items() if x.is_meta]})
                    checkpoint.check_finite(tensors)
                    part.to(device)
        latent.cast(pipe.vae, device, dtype)
        return PipelineDenoiser(pipe, size=size)


def fetch(spec: str, name: str, options: Mapping[str, str]) -> Path:
    """Returns the folder of the hub's pipeline ``ORG/NAME`` in its cache, fetched where it is not there yet."""
    from diffusers import DiffusionPipeline
    from huggingface_hub import hf_hub_download

    def fetch_index(name: str, *, local_files_only: bool) -> Path:
        return Path(hf_hub_download(name, "model_index.json", local_files_only=local_files_only)).parent

    def fetch_all(name: str, *, local_files_only: bool) -> Path:
        settings = {"use_safetensors": True, "variant": options.get("variant"), "local_files_only": local_files_only}
        with hushed(logging):
            path = Path(DiffusionPipeline.download(name, **settings, **_unused(index)))
        missing = [key for key in _parts(index) if not (path / key).is_dir()]
        if missing and not (path / "config.json").is_file():
            raise InputError(f"denoiser: {spec!r} lacks {', '.join(missing)}")
        return path

    path = load_pretrained(spec, name, fetch_index, kind="denoiser")
    index = read_index(path)
    _classes(path, index)
    return load_pretrained(spec, name, fetch_all, kind="denoiser")


def _size(options: Mapping[str, str]) -> tuple[int, int] | None:
    """Returns the height and width that options state, in pixels."""
    sizes = {key: typed(key, options[key], PositiveInt) for key in ("height", "width") if key in options}
    if len(sizes) == 1:
        raise InputError(f"denoiser: height and width must be given together, got {next(iter(sizes))} alone")
    return (sizes["height"], sizes["width"]) if sizes else None


def _parts(index: Mapping[str, Any]) -> dict[str, list]:
    """Returns the library and the class of each part that is loaded."""
    lists = {key: value for key, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {key: value for key, value in lists.items() if any(value) and key not in UNUSED}


def _unused(index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the pipeline's arguments that leave out what is not loaded."""
    without: dict[str, Any] = {key: None for key in UNUSED if key in index}
    return without | ({"requires_safety_checker": False} if "requires_safety_checker" in index else {})


def _classes(path: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the classes of the parts; what is no class of the libraries is refused."""
    classes = {}
    for key, (library, name) in _parts(index).items():
        if library not in LIBRARIES:
            raise InputError(
                f"denoiser: {str(path)!r} has a {key} by code of its own, {library}.{name}, which is never run; "
                "use parts of diffusers and transformers"
            )
        kind = getattr(import_module(library), name, None) if isinstance(name, str) else None
        if not isinstance(kind, type) or (library == "transformers" and name.startswith("Auto")):  # looks for code
            raise InputError(f"denoiser: {str(path)!r} has a {key} that is no class of {library}, {name!r}")
        classes[key] = kind
    return classes


def _in_file(key: str, kind: type[nn.Module], names: Collection[str]) -> bool:
    """Whether a file has a part's weights; the network that denoises is always the file's."""
    from diffusers.loaders.single_file_utils import is_clip_model_in_single_file, is_t5_in_single_file

    if key.startswith(("unet", "transformer")):
        return True
    if key == "vae":
        return any(name.startswith(VAE_PREFIXES) for name in names)
    return bool(is_clip_model_in_single_file(kind, names) or is_t5_in_single_file(names))


def _configuration(path: Path, given: str | None) -> Path:
    """Returns the folder of a file's pipeline: the given one, or that of the hub which diffusers takes for it."""
    if given is not None:
        if not (Path(given) / "model_index.json").is_file():
            raise InputError(
                f"denoiser: config must be a folder with the model_index.json that diffusers saves a pipeline with, "
                f"got {given!r}"
            )
        return Path(given)
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
    from huggingface_hub import snapshot_download

    with about("denoiser", path):
        name = fetch_diffusers_config(load_single_file_checkpoint(str(path)))["pretrained_model_name_or_path"]

    def fetch_configuration(name: str, *, local_files_only: bool) -> Path:
        patterns = [*CONFIGURATION, *(f"**/{pattern}" for pattern in CONFIGURATION)]
        folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=local_files_only))
        read_index(folder)
        return folder

    try:
        return load_pretrained(name, name, fetch_configuration, kind="denoiser")
    except InputError as error:
        raise InputError(
            f"denoiser: {path} does not say how its networks are built, and {name}, which diffusers takes it for, is "
            f"not in the hub's cache and cannot be fetched; give {path}?config=FOLDER, the folder of its pipeline as "
            f"diffusers saves it, without weights: hf download {name} --exclude '*.safetensors' '*.bin' '*.ckpt' "
            "--local-dir FOLDER"
        ) from error
