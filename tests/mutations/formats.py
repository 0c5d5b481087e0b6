"""Every format that is loaded: its smallest file or folder, and what loads it and asks it for an output."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from denoisers.adm_reference import Reference
from denoisers.test_dit_file import random_tensors
from denoisers.test_edm_file import TINY, EDMPrecond, saved
from steersman.classifiers import load_classifier
from steersman.denoisers import load_denoiser
from steersman.recipes import load_recipe
from steersman.run import Run, read_run
from steersman.schedule import VP
from steersman.zoo import read_network

__all__ = ["FORMATS", "Format"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        files: What there is to damage.
        load: Loads it whole.
        show: From what was loaded to what it puts out.
    """

    files: list[Path]
    load: Callable[[], object]
    show: Callable[..., Iterable[Tensor]] = lambda loaded: ()


def _walked(denoiser) -> Iterable[Tensor]:
    assert math.prod(denoiser.shape) < 1e6, f"images of {denoiser.shape}"
    generator = torch.Generator().manual_seed(0)
    told = {"label": torch.tensor([1])} if denoiser.classes else {}
    for level in denoiser.schedule.levels(3)[:-1]:
        x_t = torch.randn(1, *denoiser.shape, generator=generator) * (level.alpha**2 + level.sigma**2).sqrt()
        x0_hat = denoiser(x_t.float(), level, **told).x0_hat
        yield x0_hat
    yield denoiser.decode(x0_hat.clamp(-1, 1))


def _asked(classifier) -> Iterable[Tensor]:
    size = classifier.preprocess.size or 64
    assert size < 1000, f"images of {size}"
    if classifier.open_vocabulary:
        classifier.resolve("ball")
    level = VP.linear().at_time(5) if classifier.told_level else None
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    logits = classifier(image, level)
    assert logits.shape == (1, 1 if classifier.binary else len(classifier.names))
    yield logits


def _denoiser(spec: str, *files: Path) -> Format:
    return Format(files=list(files), load=lambda: load_denoiser(spec), show=_walked)


def _classifier(spec: str, *files: Path) -> Format:
    return Format(files=list(files), load=lambda: load_classifier(spec), show=_asked)


def _texts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors"))


def unet_folder(folder: Path) -> Format:
    from diffusers import DDPMPipeline, DDPMScheduler

    from steersman.denoisers.adm_network import ADMUNet

    unet = ADMUNet(
        heads=2,
        sample_size=4,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=3,
    )
    DDPMPipeline(unet, DDPMScheduler(num_train_timesteps=50)).save_pretrained(folder)
    (folder / "card.json").write_text(json.dumps({"classes": ["a", "b", "c"], "licence": "CC0"}))
    return _denoiser(str(folder), *_texts(folder))


def dit_folder(folder: Path, dit) -> Format:
    dit.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(number): f"class {number}" for number in range(4)}
    (folder / "model_index.json").write_text(json.dumps(index))
    return _denoiser(str(folder), *_texts(folder))


def adm(folder: Path, name: str = "mine.pt", zipped: bool = True) -> Format:
    reference = Reference(multipliers=(1,), attended=(), heads=4, labels=3)
    if name.endswith(".pt"):
        torch.save(reference.tensors, folder / name, _use_new_zipfile_serialization=zipped)
    else:
        save_file(reference.tensors, folder / name)
    return _denoiser(f"adm:{folder / name}?{reference.settings()}", folder / name)


def adm_classifier(folder: Path) -> Format:
    reference = Reference(multipliers=(1,), attended=(), heads=4, pool="attention", outputs=5)
    torch.save(reference.tensors, folder / "mine.pt")
    return _classifier(f"adm-classifier:{folder / 'mine.pt'}?{reference.settings()}&blocks=1", folder / "mine.pt")


def edm(folder: Path) -> Format:
    network = EDMPrecond(4, 1, 2, **TINY).requires_grad_(False)
    return _denoiser(saved(network, folder / "a.pkl"), folder / "a.pkl")


def dit_file(folder: Path, dit) -> Format:
    dit.vae.save_pretrained(folder / "vae")
    torch.save({"ema": random_tensors()}, folder / "a.pt")
    spec = f"dit:{folder / 'a.pt'}?vae={folder / 'vae'}&heads=3"
    return _denoiser(spec, folder / "a.pt", *_texts(folder))


def torchvision(folder: Path) -> Format:
    from torchvision import models

    torch.save(models.get_model("shufflenet_v2_x0_5", weights=None, num_classes=5).state_dict(), folder / "a.pth")
    return _classifier(f"torchvision:shufflenet_v2_x0_5:{folder / 'a.pth'}?preprocess=imagenet", folder / "a.pth")


def timm(folder: Path, name: str) -> Format:
    import timm

    state = timm.create_model("test_efficientnet", pretrained=False, num_classes=5).state_dict()
    (save_file if name.endswith(".safetensors") else torch.save)(state, folder / name)
    return _classifier(f"timm:test_efficientnet?checkpoint={folder / name}&preprocess=imagenet", folder / name)


def hf(folder: Path) -> Format:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        id2label={0: "ball", 1: "cat", 2: "dog"},
    )
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return _classifier(f"hf:{folder}", *_texts(folder))


def clip(folder: Path, source: Path) -> Format:
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return _classifier(f"clip:{folder}", *_texts(folder))


def card(folder: Path) -> Format:
    from steersman.classifiers import build_network

    weights, told = folder / "model.safetensors", folder / "card.json"
    save_file(build_network("resnet10_narrow", 3).half().state_dict(), weights)
    told.write_text(json.dumps({"architecture": "resnet10_narrow", "classes": ["a", "b", "c"]}))
    shape = 1, 3, 64, 64
    return Format(
        files=[weights, told], load=lambda: read_network(weights, told), show=lambda made: [made[0](torch.ones(shape))]
    )


def run(folder: Path) -> Format:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(Run(targets=("baseball", "volleyball"), recipe=load_recipe("elucd-ddpm")).record()))
    return Format(files=[path], load=lambda: read_run(path).record())


def recipe(folder: Path) -> Format:
    from importlib import resources

    path = folder / "mine.yaml"
    path.write_bytes((resources.files("steersman.recipes") / "elucd-ddpm.yaml").read_bytes())
    return Format(files=[path], load=lambda: load_recipe(str(path)).resolved())


FORMATS: dict[str, Callable[[Path, object, Path], Format]] = {
    "unet folder": lambda folder, dit, source: unet_folder(folder),
    "dit folder": lambda folder, dit, source: dit_folder(folder, dit),
    "adm zip": lambda folder, dit, source: adm(folder),
    "adm legacy": lambda folder, dit, source: adm(folder, zipped=False),
    "adm safetensors": lambda folder, dit, source: adm(folder, "mine.safetensors"),
    "adm-classifier": lambda folder, dit, source: adm_classifier(folder),
    "edm": lambda folder, dit, source: edm(folder),
    "dit": lambda folder, dit, source: dit_file(folder, dit),
    "torchvision": lambda folder, dit, source: torchvision(folder),
    "timm pt": lambda folder, dit, source: timm(folder, "a.pt"),
    "timm safetensors": lambda folder, dit, source: timm(folder, "a.safetensors"),
    "hf": lambda folder, dit, source: hf(folder),
    "clip": lambda folder, dit, source: clip(folder, source),
    "card": lambda folder, dit, source: card(folder),
    "run": lambda folder, dit, source: run(folder),
    "recipe": lambda folder, dit, source: recipe(folder),
}
"""By name: from an empty folder, a tiny DiT pipeline and the folder of a tiny CLIP to the format in that folder."""
