"""Files are opened in few places, which guard what they open; no module opens one by itself."""

import ast
from pathlib import Path

import steersman

SOURCE = Path(steersman.__file__).parent

OPENERS = {
    *("open", "io.open", "Image.open", "gzip.open", "bz2.open", "lzma.open", "tarfile.open", "zipfile.ZipFile"),
    *("ZipFile", "mmap", "mmap.mmap", "safe_open", "load_file", "np.load", "numpy.load", "np.fromfile", "np.loadtxt"),
    *("np.genfromtxt", "torch.load", "torch.from_file", "torch.jit.load", "json.load", "yaml.load", "yaml.safe_load"),
    *("yaml.full_load", "yaml.unsafe_load", "pickle.load", "pickle.loads", "joblib.load", "parquet.read_table"),
    *("parquet.ParquetFile", "torchvision.io.read_image", "io.read_image", "decode_image", "csv.DictReader"),
}
"""Calls that open a file by its path, or build whatever is in it."""

METHODS = {"open", "read_text", "read_bytes"}
"""Methods of a path that do."""

ALLOWED = {
    "files.py": {"Image.open", "zipfile.ZipFile", ".read_text", ".read_bytes", ".open"},  # the guards themselves
    "models/pickles.py": {"mmap", "ZipFile", "torch.from_file", ".open"},  # which builds tensors and plain values alone
    "models/checkpoint.py": {"load_file", "safe_open", "zipfile.ZipFile"},  # of archives looked at before
    "models/denoisers/pipeline.py": {"safe_open"},  # likewise
    "names.py": {".read_text", "yaml.load"},  # of tables and recipes that are a part of the package
    "lab/generate/formats.py": {"zipfile.ZipFile", "tarfile.open", ".open"},  # of one run, claims held against sizes
    "lab/data/pictures.py": {"gzip.open", "parquet.ParquetFile", ".open"},  # bounded, digests compared
    "models/hub.py": {".open"},  # of a file whose digest is compared
    "lab/metrics/features.py": {".open"},  # likewise
    "lab/train/loop.py": {"torch.load"},  # tensors only, of an archive that was looked at before
    "lab/tune/search.py": {".open"},  # of Optuna's own journal
}
WRITES = ("w", "wb", "x", "xb", "a", "ab")


def opened(tree):
    """Yields how each file is opened, with the line."""
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules = {
        (node.module or "").partition(".")[0] for node in froms if any(e.name == "load_file" for e in node.names)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        arguments = [each.value for each in node.args if isinstance(each, ast.Constant)]
        if any(argument in WRITES for argument in arguments):
            continue
        name = ast.unparse(node.func)
        if name == "load_file" and "safetensors" not in modules:  # one of our own
            continue
        if name in OPENERS:
            yield name, node.lineno
        elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS and name != "os.open":
            yield f".{node.func.attr}", node.lineno


def test_files_are_opened_by_the_guarded_readers():
    for path in SOURCE.rglob("*.py"):
        name = path.relative_to(SOURCE).as_posix()
        for call, line in opened(ast.parse(path.read_text("utf-8"))):
            assert call in ALLOWED.get(name, ()), f"{name}:{line} opens a file by {call}; steersman.files reads it"


def test_what_is_allowed_is_there():
    for name, calls in ALLOWED.items():
        found = {call for call, _ in opened(ast.parse((SOURCE / name).read_text("utf-8")))}
        assert calls <= found, (name, calls - found)
