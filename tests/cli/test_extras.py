"""Without the optional packages: what needs none of them works, and what does names the extra to install."""

import re
import subprocess
import sys

import pytest

from steersman.cli.root import LAB

WITHOUT = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*LAB, "transformers", "pyarrow")}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.modules |= dict.fromkeys({(*LAB, "transformers", "pyarrow")})
"""
RUN = (
    WITHOUT
    + """
from steersman.cli import main
for line in sys.stdin:
    sys.argv = ["steersman", *line.split()]
    try:
        main()
    except SystemExit as ended:
        print(ended.code or 0, file=sys.stderr)
"""
)


def started(*commands, folder):
    """Returns the exit code of each command, run one after the other in a process, and what it says of errors."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN],
        input="\n".join(map(" ".join, commands)),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    *said, rest = re.split(r"^(\d)\n", run.stderr, flags=re.MULTILINE)
    assert rest == ""
    return list(zip(map(int, said[1::2]), said[::2], strict=True))


@pytest.mark.parametrize(
    "words",
    [
        ("sweep", "nrcg", "--vary", "scale=1,2", "--reference", "sportballs", "--out", "out"),
        ("tune", "--out", "out"),
        ("report", "."),
        ("reproduce",),
        ("evaluate", "sportballs"),
        ("analyze", "accuracy", "--out", "out"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_of_the_lab_is_refused_at_once(words, call, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, LAB[0], None)
    said = f"steersman: steersman {words[0]} needs {LAB[0]}; run pip install 'steersman[lab]'\n"
    assert call(*words) == (2, "", said)
    assert list(tmp_path.iterdir()) == []


def test_images_are_drawn_without_any_of_them(tmp_path):
    words = ["sample", "--target", "7", "--denoiser", "zoo:mnist", "--classifier", "zoo:mnist-lenet", "--judge", "none"]
    words += ["--recipe", "nrcg", "--steps", "2", "--num", "1", "--out", "drawn"]
    text = [*words[:-1], "text", "--classifier", "clip:somewhere"]
    drawn, gif, (code, err) = started(words, [*words, "--gif"], text, folder=tmp_path)
    assert drawn == (0, "")
    assert (tmp_path / "drawn" / "000000.png").is_file()
    assert gif == (2, "steersman: --gif needs matplotlib; run pip install 'steersman[lab]'\n")
    assert code == 2 and "steersman[text]" in err
