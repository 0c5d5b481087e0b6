"""Pages of runs, sweeps, tunes and analyses: what they show, and that they stand alone."""

import base64
import io
import json
from html.parser import HTMLParser

import pytest
import yaml
from PIL import Image

from steersman.errors import InputError
from steersman.lab.report.page import LARGEST, SHOWN, SIDE, WIDEST, embedded, report, thumbnail
from steersman.lab.report.plots import Curve, write_curves

VOID = {"meta", "img", "br", "link"}
EVIL = "<script>alert('1 & 2')</script>"


class Reader(HTMLParser):
    """Gathers tags with their attributes, and the text, and checks that each tag is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text, self.titles = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def read(folder):
    path = report(folder)
    assert path == folder / "report.html"
    content = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(content)
    reader.close()
    assert not reader.open
    for tag, attributes in reader.tags:  # nothing outside, nothing that runs
        assert tag not in ("script", "link", "iframe", "object", "base")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data", "action"):
            assert name not in attributes or (tag == "img" and attributes[name].startswith("data:image/"))
    style = content[content.index("<style>") : content.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style
    viewport = next(each for each in reader.all("meta") if each.get("name") == "viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"
    assert all(each["alt"] for each in reader.all("img"))
    return reader, " ".join(" ".join(reader.text).split())


def picture(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def run(folder, targets=("baseball",), num=3, side=16, **changes):
    folder.mkdir(parents=True)
    record = {"targets": list(targets), "num": num, "seed": 5, "denoiser": EVIL, "recipe": {"name": "mine"}}
    record["recipe"]["settings"] = {"scale": {"value": 0.25}, "weight": ["deviation", {"kind": "interval"}]}
    (folder / "run.yaml").write_text(yaml.safe_dump(record | {"versions": {"torch": "1.2.3"}}))
    said = {"accuracy": {"guide": 0.75, "judge": None}, "probability": {"guide": 0.5, "judge": None}}
    metrics = said | {"seconds": 12.34, "network_evaluations": {"denoiser": 24, "classifier": 8}, "lost": []} | changes
    if len(targets) > 1:
        metrics["targets"] = {name: said for name in targets}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    for target in targets:
        place = folder / target if len(targets) > 1 else folder
        place.mkdir(exist_ok=True)
        for seed in range(5, 5 + num):
            Image.new("RGB", (side, side), (seed, 0, 0)).save(place / f"{seed:06d}.png")
    Image.new("RGB", (40, 20)).save(folder / "grid.png")
    return folder


def test_a_run_shows_figures_images_and_settings(tmp_path):
    folder = run(tmp_path / EVIL.replace("/", "-"))
    figure = {"value": 0.5, "low": 0.25, "high": 0.75}
    nothing = dict.fromkeys(figure)
    evaluation = {"figures": {"accuracy/judge": figure, "fid": nothing}, "reference": EVIL, "features": "f"}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    reader, text = read(folder)
    for shown in (
        *("3 images of each target, seeds 5 to 7, steered to baseball.", "12.3 s; an image took 24 evaluations"),
        *("accuracy, guide", "75.0%", "accuracy/judge 50.0% [25.0%, 75.0%]", f"against {EVIL} by f"),
        *(
            f"denoiser {EVIL}",
            "recipe mine",
            "scale.value 0.25",
            "weight [deviation, {kind: interval}]",
            "torch 1.2.3",
        ),
    ):
        assert shown in text
    assert "judge," not in text and "fid" not in text  # where there is none
    thumbs = reader.all("img")
    assert [each["alt"] for each in thumbs] == ["seed 5", "seed 6", "seed 7"]
    assert [picture(each["src"]).size for each in thumbs] == [(16, 16)] * 3


def test_the_images_of_a_large_run_are_few_and_small(tmp_path):
    targets = ("baseball", "soccer ball")
    reader, text = read(run(tmp_path / "run", targets, num=SHOWN, side=300, lost=["baseball 9"]))
    thumbs = reader.all("img")
    assert len(thumbs) == SHOWN
    assert [each for each in reader.titles if "ball" in each] == [
        f"{name} ({SHOWN // 2} of {SHOWN})" for name in targets
    ]
    assert {picture(each["src"]).size for each in thumbs} == {(SIDE, SIDE)}
    assert (thumbs[0]["alt"], thumbs[-1]["alt"]) == ("baseball, seed 5", f"soccer ball, seed {5 + SHOWN // 2 - 1}")
    assert "Not finite and not written: baseball 9." in text


def test_warnings_stand_out_and_targets_are_named(tmp_path):
    folder = run(tmp_path / "run", warnings=["The guidance hardly changed the images."])
    record = yaml.safe_load((folder / "run.yaml").read_text())
    blend = {"blend": {"baseball": 1.0, "soccer ball": -0.5}, "targets": []}
    (folder / "run.yaml").write_text(yaml.safe_dump(record | blend))
    reader, text = read(folder)
    assert "steered to 1 × baseball and -0.5 × soccer ball. " in text
    assert [each for each in reader.all("p") if each.get("class") == "warning"]
    drawn = {"targets": ["all"], "drawn": {"targets": ["baseball", "soccer ball"], "digest": "x"}}
    (folder / "run.yaml").write_text(yaml.safe_dump(record | drawn))
    text = read(folder)[1]
    assert "steered to baseball, soccer ball. " in text and "digest" not in text


def test_a_run_under_way_says_so(tmp_path):
    folder = run(tmp_path / "run")
    (folder / "metrics.json").unlink()
    assert "The run is not finished" in read(folder)[1]


def test_a_sweep_shows_its_table_plots_and_images(tmp_path):
    record = {
        "varied": {"scale": [1, EVIL]},
        "reference": "sportballs",
        "features": "zoo:judge",
        "shared": {"num": 4, "recipe": {"name": "mine"}},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(record | {"versions": {}}))
    _, text = read(tmp_path)
    assert "2 values of scale. In each cell 4 images of each target, seeds 0 to 3; against sportballs" in text
    assert "The sweep is not finished" in text
    lines = ["scale,fid,fid low,fid high,kid,kid low,kid high,lost,broken,seconds", "1,12.3456,11,13,,,,0,0,9.5"]
    lines += ['"<b>, x",150.26,,,,,,1,0,7']
    (tmp_path / "sweep.csv").write_text("\n".join(lines))
    write_curves(tmp_path / "fid", [Curve(name="fid", x=[1, 2], y=[3, 4])], x="scale", y="fid")
    Image.new("RGB", (40, 20)).save(tmp_path / "grid.png")
    Image.new("RGB", (40, 20)).save(tmp_path / "pareto-fid.png")
    reader, text = read(tmp_path)
    assert "scale FID (judge) ↓ lost seconds 1 12.3 [11, 13] 0 9.5 <b>, x 150.3 1 7" in text
    assert "Figures of 4 images a cell are rough" in text
    assert "scale=<b>, x: images that are not finite and not written: 1." in text
    assert "not finished" not in text and "num 4" in text and "reference sportballs" in text
    assert [each["alt"].split()[0] for each in reader.all("img")] == ["fid", "fid", "the"]
    assert [attributes.get("class") for attributes in reader.all("th")] == [None, "number", "number", "number"]


def test_a_tune_shows_its_best_trials_and_the_recipe_that_was_taken(tmp_path):
    record = {"recipes": ["freedom"], "space": {"scale": "1..9"}, "reference": "sportballs", "shared": {"num": 4}}
    (tmp_path / "tune.yaml").write_text(yaml.safe_dump(record))
    _, text = read(tmp_path)
    assert "of freedom." in text and "scale 1..9" in text and "The tune is not finished" in text
    figures = "accuracy,accuracy low,accuracy high,distance,distance low,distance high"
    lines = [f"trial,settings,{figures},cost,same as,pareto,refused", "0,scale=1,0.5,0.2,0.8,12.3456,11,13,24,,yes,"]
    lines += ["1,scale=2,0.25,0.1,0.5,99,98,100,24,,,", f'2,scale=9,,,,,,,,,,"{EVIL}"']
    (tmp_path / "tune.csv").write_text("\n".join(lines))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"expected": ["accuracy 50%"], "settings": {"scale": 1.0}}))
    Image.new("RGB", (40, 20)).save(tmp_path / "pareto-accuracy.png")
    (tmp_path / "trials" / "0000").mkdir(parents=True)
    Image.new("RGB", (40, 20)).save(tmp_path / "trials" / "0000" / "grid.png")
    reader, text = read(tmp_path)
    best = "trial settings accuracy distance cost pareto 0 scale=1 50.0% [20.0%, 80.0%] 12.3 [11, 13] 24 yes"
    assert f"no other beats in accuracy, distance and cost {best}" in text
    assert "all 2 that were drawn" in text and "1 scale=2 25.0% [10.0%, 50.0%]" in text
    assert f"1 refused trial settings why 2 scale=9 {EVIL}" in text
    assert "gave accuracy 50%" in text and "scale 1.0" in text and "num 4" in text and "not finished" not in text
    pictures = [each["alt"] for each in reader.all("img")]
    assert pictures[0] == "trial 0: judge 50.0% [20.0%, 80.0%], distance 12.3 [11, 13]" and len(pictures) == 2
    cell = next(each for each in reader.all("td") if each.get("data-column") == "distance")
    assert cell["class"] == "number"  # on a narrow screen each cell names its column


def test_an_analysis_shows_each_plot_with_its_values(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"denoiser": EVIL, "steps": 50}))
    assert "The analysis is not finished" in read(tmp_path)[1]
    many = [float(x) for x in range(300)]
    write_curves(tmp_path / "accuracy", [Curve(name=EVIL, x=many, y=many)], x="time", y="accuracy")
    Image.new("RGB", (40, 20)).save(tmp_path / "gradients.png")
    reader, text = read(tmp_path)
    assert [each["alt"] for each in reader.all("img")] == ["accuracy", "gradients"]
    assert "the first 200 of 300 values" in text and f"{EVIL} 199.0 199.0" in text and "200.0" not in text
    assert "steps 50" in text and len(reader.all("details")) == 1


def test_large_files_are_made_smaller_and_others_stay_as_they_are(tmp_path):
    Image.effect_noise((2400, 1800), 90).save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > LARGEST
    uri = embedded(tmp_path / "large.png")
    assert uri.startswith("data:image/jpeg;base64,") and picture(uri).size == (WIDEST, WIDEST * 3 // 4)
    Image.new("L", (8, 4)).save(tmp_path / "small.gif")
    uri = embedded(tmp_path / "small.gif")
    assert uri.startswith("data:image/gif;base64,")
    assert base64.b64decode(uri.partition(",")[2]) == (tmp_path / "small.gif").read_bytes()


def test_what_cannot_be_shown_is_refused_in_a_line(tmp_path):
    def told(folder):
        with pytest.raises(InputError) as error:
            report(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "must be a folder of a run (run.yaml), a sweep" in told(tmp_path)
    assert "it holds none of these files" in told(tmp_path / "nowhere")
    (tmp_path / "run.yaml").write_text("- 1")
    assert "run.yaml' cannot be used; it must hold a mapping, got [1]" in told(tmp_path)
    (tmp_path / "run.yaml").write_text("num: many")
    assert "holds records of another form" in told(tmp_path)
    (tmp_path / "image.png").write_bytes(b"no image")
    for read_image in (embedded, thumbnail):
        with pytest.raises(InputError, match="image.png' cannot be used; it must be an image: PNG, JPEG"):
            read_image(tmp_path / "image.png")
    other = run(tmp_path / "run")
    (other / "metrics.json").write_text("{")
    assert "metrics.json' cannot be read (JSONDecodeError: Expecting property name" in told(other)
    assert not (tmp_path / "report.html").exists() and not (other / "report.html").exists()
