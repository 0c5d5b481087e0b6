from steersman.cli import (
    bench,
    calibration,
    classes,
    convert,
    data,
    evaluate,
    recipes,
    report,
    reproduce,
    sample,
    sweep,
    train,
    tune,
)
from steersman.cli.root import app, main

for command in (
    sample.sample,
    classes.classes,
    convert.convert,
    sweep.sweep,
    tune.tune,
    bench.bench,
    report.report,
    reproduce.reproduce,
    evaluate.evaluate,
):
    app.command()(command)
for name, group in (("analyze", calibration), ("data", data), ("recipes", recipes), ("train", train)):
    app.add_typer(group.app, name=name)

__all__ = ["app", "main"]
