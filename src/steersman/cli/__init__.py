from steersman.cli import (
    analyze,
    bench,
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

app.command(epilog=sample.EPILOG)(sample.sample)
app.command(epilog=convert.EPILOG)(convert.convert)
app.command(epilog=sweep.EPILOG)(sweep.sweep)
app.command(epilog=tune.EPILOG)(tune.tune)
app.command(epilog=bench.EPILOG)(bench.bench)
app.command(epilog=report.EPILOG)(report.report)
app.command(epilog=reproduce.EPILOG)(reproduce.reproduce)
app.command(epilog=evaluate.EPILOG)(evaluate.evaluate)
for name, group in (("analyze", analyze), ("data", data), ("recipes", recipes), ("train", train)):
    app.add_typer(group.app, name=name)

__all__ = ["app", "main"]
