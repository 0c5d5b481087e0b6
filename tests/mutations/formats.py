"""Every format that is loaded: its smallest file or folder, and what loads it and asks it for an output."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from denoisers.adm_reference import Reference
from denoisers.test_dit_file import random_tensors
from denoisers.test_edm_file import TINY, EDMPrecond, saved
from steersman.files import read_image
from steersman.lab.analysis.calibration import read_cells, read_errors
from steersman.lab.analysis.parts import Parts
from steersman.lab.data import pictures
from steersman.lab.data.images import read_images
from steersman.lab.generate import status
from steersman.lab.generate.formats import ImageRecord, write_image, write_shard
from steersman.lab.metrics.features import read_reference
from steersman.lab.metrics.intervals import Figure
from steersman.lab.report.page import page_of
from steersman.lab.reproduce import load_reproduction
from steersman.lab.run import Run, read_run
from steersman.lab.tune.cost import Prices
from steersman.lab.tune.search import Search
from steersman.lab.tune.tuning import LARGER, Trial, resumed
from steersman.models.classifiers import load_classifier
from steersman.models.denoisers import load_denoiser
from steersman.models.zoo import build_network, read_network
from steersman.recipes import load_recipe
from steersman.schedule import VP

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
    steps = min(3, len(getattr(denoiser.schedule, "alpha_bar", range(3))))
    levels = denoiser.schedule.levels(steps)[:-1]
    for level in (each for each in levels if each.alpha > 0):  # without signal, some networks are refused by their kind
        x_t = torch.randn(1, *denoiser.shape, generator=generator) * (level.alpha**2 + level.sigma**2).sqrt()
        x0_hat = denoiser(x_t.float(), level, **told).x0_hat
        yield x0_hat
    yield denoiser.decode(x0_hat.clamp(-1, 1))


def _asked(classifier) -> Iterable[Tensor]:
    size = classifier.preprocess.size or 64
    assert size < 1000, f"images of {size}"
    if classifier.open_vocabulary:
        classifier.resolve("ball")
    level = VP.linear().at_time(5) if classifier.noise_aware else None
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

    from steersman.models.denoisers.architectures import ADMUNet

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
    return _classifier(
        f"torchvision:shufflenet_v2_x0_5?checkpoint={folder / 'a.pth'}&preprocess=imagenet", folder / "a.pth"
    )


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


def reproduction(folder: Path) -> Format:
    """The bundled one, without what it draws from others' files."""
    from importlib import resources

    path = folder / "mine.yaml"
    path.write_bytes((resources.files("steersman.lab.reproduce") / "tables" / "elucd-imagenet128.yaml").read_bytes())
    return Format(files=[path], load=lambda: load_reproduction(str(path)).files())


def picture(folder: Path, name: str, mode: str = "RGB", **settings: object) -> Format:
    path = folder / name
    content = np.random.default_rng(0).integers(0, 256, (12, 16, len(mode)), np.uint8)
    if mode == "I;16":
        Image.fromarray(content[..., 0].astype(np.uint16) * 257).save(path, **settings)
    else:
        Image.fromarray(content.squeeze()).convert(mode).save(path, **settings)
    return Format(files=[path], load=lambda: read_image(path), show=lambda made: [torch.from_numpy(np.array(made))])


def _set(spec: Path, *files: Path) -> Format:
    def load() -> Tensor:
        return torch.cat(list(read_images(spec).batches()))

    return Format(files=list(files or [spec]), load=load, show=lambda images: [images])


def batch(folder: Path, save: Callable) -> Format:
    path = folder / "batch.npz"
    save(path, np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8), np.arange(5))
    return _set(path)


def statistics(folder: Path) -> Format:
    path, features = folder / "statistics.npz", np.random.default_rng(0).normal(size=(20, 8))
    facts = {"extractor": np.array("x"), "labels": np.array(10 * ["a", "b"]), "side": np.array([8, 8])}
    np.savez(path, mu=features.mean(0), sigma=np.cov(features.T), features=features, **facts)
    return Format(files=[path], load=lambda: read_reference(path), show=lambda held: [held.moments[0]])


def shard(folder: Path, suffix: str) -> Format:
    """A run whose images are packed."""
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    facts = {"run": "0", "target": "cube", "label": 3, "guide": None, "judge": None, "dropped": 0, "moved": None}
    facts |= {"noise_error": 0.5, "evaluations": {"denoiser": 2.0}, "seconds": 0.1, "lost": False}
    records = {seed: ImageRecord(seed=seed, **facts) for seed in range(len(pixels))}
    images = {}
    for seed, record in records.items():
        write_image(folder / "x.png", pixels[seed], record)
        images[seed] = (folder / "x.png").read_bytes()
    (folder / "x.png").unlink()
    path = folder / ("images.npz" if suffix == ".npz" else "images-00000.tar")
    write_shard(path, records, images.__getitem__)
    return _set(folder, path)


def idx(folder: Path, packed: bool) -> Format:
    """MNIST's test images, so few that they are other ones."""
    from data.test_pictures import idx as written

    pixels, labels = np.random.default_rng(0).integers(0, 256, (4, 28, 28), np.uint8), np.arange(4).astype(np.uint8)
    paths = [folder / f"t10k-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
    if packed:
        import gzip

        paths = [path.with_name(f"{path.name}.gz") for path in paths]
    for path, array in zip(paths, (pixels, labels), strict=True):
        path.write_bytes(gzip.compress(written(array)) if packed else written(array))
    return _published("mnist", folder, pixels[..., None], labels, *paths)


def _published(name: str, folder: Path, pixels: np.ndarray, labels: np.ndarray, *files: Path) -> Format:
    """A published data set of these images."""
    from dataclasses import replace

    pictures.SOURCES[name] = replace(pictures.SOURCES[name], digests={"test": (pictures._digest(pixels, labels),)})
    return _set(f"{name}:{folder}?split=test", *files)


def parquet(path: Path, rows: list[dict]) -> None:
    table = pytest.importorskip("pyarrow").Table.from_pylist(rows)
    pytest.importorskip("pyarrow.parquet").write_table(table, path)


def cifar10(folder: Path, layout: str) -> Format:
    """CIFAR-10's test images in one of the layouts that they are found in, so few that they are other ones."""
    import io
    import pickle

    pixels, labels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8), np.arange(4).astype(np.uint8)
    files = [folder / "test_batch"]
    if layout == "pickle":
        flat = pixels.transpose(0, 3, 1, 2).reshape(4, 3072)
        files[0].write_bytes(pickle.dumps({b"labels": labels.tolist(), b"data": flat}, protocol=2))
    elif layout == "npm":
        files = [folder / "test_batch.png", folder / "test_lables.json"]
        Image.fromarray(pixels.reshape(4, 1024, 3)).save(files[0])
        files[1].write_text(json.dumps(labels.tolist()))
    else:
        rows, files = [], [folder / "test-00000-of-00001.parquet"]
        for image, label in zip(pixels, labels, strict=True):
            Image.fromarray(image).save(stream := io.BytesIO(), format="PNG")
            rows.append({"img": {"bytes": stream.getvalue(), "path": None}, "label": int(label)})
        parquet(files[0], rows)
    return _published("cifar10", folder, pixels, labels, *files)


def report(folder: Path) -> Format:
    """What a run's folder says of it, of which a page is made."""
    record = Run(targets=("baseball",), num=2).record() | {"drawn": {"targets": ["baseball"], "digest": "0"}}
    (folder / "run.yaml").write_text(yaml.safe_dump(record))
    figures = {"accuracy": {"guide": 1.0, "judge": 0.5}, "probability": {"guide": 0.9, "judge": 0.4}}
    figures |= {"similarity": {"guide": None, "judge": None}, "images": 2, "seconds": 1.5, "images_per_second": 1.3}
    figures |= {"nonfinite_gradients": 0, "lost": [], "network_evaluations": {"denoiser": 2.0, "classifier": 2.0}}
    (folder / "metrics.json").write_text(json.dumps(figures))
    held = {"fid": {"value": 3.0, "low": 2.0, "high": 4.0, "note": None}}
    (folder / "evaluation.json").write_text(json.dumps({"figures": held, "reference": "x", "features": "y"}))
    for seed in range(2):
        Image.new("RGB", (8, 8)).save(folder / f"{seed:06d}.png")

    def load() -> object:
        return page_of(folder), status(folder), len(read_images(folder))

    return Format(files=sorted(folder.iterdir()), load=load)


def analysis(folder: Path) -> Format:
    """What is kept of an analysis that goes on."""
    settings = {"analysis": "accuracy", "num": 4}
    for images in ([0, 1], [2, 3]):
        Parts(folder, settings, 4).write(images, {("a", "b"): torch.ones(2, 3)})
    (folder / "integral.csv").write_text("name,integral calibration error\na,0.5\nb,0.25\n")

    def load() -> list[Tensor]:
        parts = Parts(folder, settings, 4)
        assert page_of(folder) and read_errors(folder) is not None
        return [torch.from_numpy(each) for each in (parts.read() if not parts.missing(2) else {}).values()]

    return Format(files=sorted(path for path in folder.rglob("*") if path.is_file()), load=load, show=lambda held: held)


def sweep(folder: Path) -> Format:
    """What a finished sweep says."""
    content = {"varied": {"scale": [1, 2]}, "reference": "x", "shared": {"num": 2, "recipe": {"name": "mine"}}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(content))
    rows = "scale,accuracy/judge,accuracy/judge low,accuracy/judge high,lost\n1,0.5,0.25,0.75,0\n2,0.75,0.5,1,0\n"
    (folder / "sweep.csv").write_text(rows)
    larger = {"accuracy/judge": True}
    return Format(files=sorted(folder.iterdir()), load=lambda: (page_of(folder), read_cells(folder, larger=larger)))


def tune(folder: Path) -> Format:
    """What a tune goes on with."""
    space = {"scale": "1.0..4.0"}
    shared = {"num": 2, "seed": 0}
    content = {"space": space, "recipes": ["nrcg"], "reference": "sportballs", "shared": shared}
    (folder / "tune.yaml").write_text(yaml.safe_dump(content))
    header = "trial,settings,accuracy,distance,cost,pareto,refused"
    (folder / "tune.csv").write_text(f"{header}\n0,scale=1,0.5,3.0,3,yes,\n1,scale=9,,,4,,too far\n")
    (folder / "prices.json").write_text(json.dumps({"a": 0.5, "b": 1.5}))
    search = Search(space, file=folder / "study.log", larger=LARGER)
    for _ in range(3):
        proposal = search.ask()
        trial = Trial(
            number=proposal.number, settings=proposal.values, cost=2.0, accuracy=Figure(0.5), distance=Figure(3.0)
        )
        search.tell(trial.objectives, asdict(trial))

    def load() -> object:
        return page_of(folder), Prices(folder / "prices.json"), resumed(space, folder / "study.log", [], 0)

    return Format(files=sorted(path for path in folder.iterdir() if path.suffix != ".lock"), load=load)


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
    "reproduction": lambda folder, dit, source: reproduction(folder),
    "png": lambda folder, dit, source: picture(folder, "a.png"),
    "png grey": lambda folder, dit, source: picture(folder, "a.png", "L"),
    "png palette": lambda folder, dit, source: picture(folder, "a.png", "P"),
    "png 16 bits": lambda folder, dit, source: picture(folder, "a.png", "I;16"),
    "jpeg": lambda folder, dit, source: picture(folder, "a.jpg"),
    "jpeg cmyk": lambda folder, dit, source: picture(folder, "a.jpg", "CMYK"),
    "webp": lambda folder, dit, source: picture(folder, "a.webp"),
    "gif": lambda folder, dit, source: picture(folder, "a.gif"),
    "bmp": lambda folder, dit, source: picture(folder, "a.bmp"),
    "tiff": lambda folder, dit, source: picture(folder, "a.tif"),
    "tiff packed": lambda folder, dit, source: picture(folder, "a.tif", compression="tiff_lzw"),
    "ppm": lambda folder, dit, source: picture(folder, "a.ppm"),
    "npz": lambda folder, dit, source: batch(folder, np.savez),
    "npz packed": lambda folder, dit, source: batch(folder, np.savez_compressed),
    "statistics": lambda folder, dit, source: statistics(folder),
    "run npz": lambda folder, dit, source: shard(folder, ".npz"),
    "run webdataset": lambda folder, dit, source: shard(folder, ".tar"),
    "idx": lambda folder, dit, source: idx(folder, packed=False),
    "idx packed": lambda folder, dit, source: idx(folder, packed=True),
    "cifar10 pickle": lambda folder, dit, source: cifar10(folder, "pickle"),
    "cifar10 npm": lambda folder, dit, source: cifar10(folder, "npm"),
    "cifar10 parquet": lambda folder, dit, source: cifar10(folder, "parquet"),
    "report": lambda folder, dit, source: report(folder),
    "analysis": lambda folder, dit, source: analysis(folder),
    "sweep": lambda folder, dit, source: sweep(folder),
    "tune": lambda folder, dit, source: tune(folder),
}
"""By name: from an empty folder, a tiny DiT pipeline and the folder of a tiny CLIP to the format in that folder."""
