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
from steersman.cli.root import app, in_lab, main

app.command(epilog=sample.EPILOG)(sample.sample)
app.command(epilog=convert.EPILOG)(convert.convert)
app.command(epilog=sweep.EPILOG)(in_lab(sweep.sweep))
app.command(epilog=tune.EPILOG)(in_lab(tune.tune))
app.command(epilog=bench.EPILOG)(bench.bench)
app.command(epilog=report.EPILOG)(in_lab(report.report))
app.command(epilog=reproduce.EPILOG)(in_lab(reproduce.reproduce))
app.command(epilog=evaluate.EPILOG)(in_lab(evaluate.evaluate))
for name, group in (("analyze", analyze), ("data", data), ("recipes", recipes), ("train", train)):
    app.add_typer(group.app, name=name)

__all__ = ["app", "main"]
