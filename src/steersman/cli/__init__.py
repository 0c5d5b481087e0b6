from steersman.cli.app import app, main
from steersman.cli.convert import EPILOG as CONVERT
from steersman.cli.convert import convert
from steersman.cli.data import app as data
from steersman.cli.recipes import app as recipes
from steersman.cli.sample import EPILOG, sample
from steersman.cli.train import app as train

app.command(epilog=EPILOG)(sample)
app.command(epilog=CONVERT)(convert)
app.add_typer(data, name="data")
app.add_typer(recipes, name="recipes")
app.add_typer(train, name="train")

__all__ = ["app", "main"]
